"""The user's functions, guarded: what goes wrong in one is a sentence with its name, the row and what came back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.text.inputs import TextGroups, VerdictFunction, by_key
from calibrant.text.metrics import normalise_answer
from calibrant.user_code import Guard, describe, short_form

Judge = Callable[[Sequence[str], Sequence[list[str] | None]], list[bool | None]]
"""B answers and their lists of references -> verdicts; None where there is no reference, or no verdict."""


def guarded_judge(is_correct: Callable[[str, list[str]], object] | None, judge: VerdictFunction | None) -> Judge | None:
    """A judge of batches from the user's `judge` or else `is_correct`, which see rows with references alone."""
    wanted = "return one verdict per answer: True, False, or None where there is none"
    if judge is not None:
        whole = Guard(judge, "judge", wanted)
    elif is_correct is not None:
        whole = Guard(is_correct, "is_correct function", wanted)
    else:
        return None

    def verdicts(answers: Sequence[str], references: Sequence[list[str] | None]) -> list[bool | None]:
        gold = {i: right for i, right in enumerate(references) if right is not None}
        asked, values = [answers[i] for i in gold], []
        if judge is None:
            values = [whole(answers[i], list(right), at=f" for completion {i}") for i, right in gold.items()]
        elif gold:
            values = whole.values(whole(asked, list(gold.values())), len(gold), "verdicts")
        found = {i: _verdict(whole, value, i) for i, value in zip(gold, values, strict=True)}
        return [found.get(i) for i in range(len(answers))]

    return verdicts


def _verdict(guard: Guard, value: Any, row: int) -> bool | None:
    value = value.item() if getattr(value, "shape", None) == () else value
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise guard.refused(value, f" for completion {row}")


def guarded_clusters(
    cluster: Callable[[TextGroups], object] | None, answer_key: Callable[[str], object] | None
) -> Callable[[TextGroups], Tensor]:
    """Clusters from the user's `cluster`, or of equal keys."""
    if cluster is None:
        key = Guard(answer_key or normalise_answer, "answer_key function", "return a string; '' where there is none")
        return by_key(lambda text: _key(key, text))
    guard = Guard(cluster, "cluster function", "return integers [N, G], one per text of each group")
    return lambda groups: _cluster_numbers(guard, guard(groups), groups)


def _key(guard: Guard, text: str) -> Any:
    at = f" for the answer {text!r:.60}"
    key = guard(text, at=at)
    if key is None or type(key).__hash__ is None:
        raise guard.refused(key, at)
    return key


def _cluster_numbers(guard: Guard, returned: object, groups: TextGroups) -> Tensor:
    shape = (len(groups), len(groups[0]))
    try:
        numbers = torch.as_tensor(returned)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise guard.refused(returned, f" for groups [N, G] = {list(shape)}") from None
    if numbers.shape != shape or numbers.is_floating_point() or numbers.is_complex():
        raise guard.refused(numbers, f" ({numbers.dtype}) for groups [N, G] = {list(shape)}")
    return numbers.long()


class Extracted(NamedTuple):
    """An answer, "" where the extractor failed, and how it failed."""

    answer: str
    problem: str | None = None


def extractor(extract: Callable[[str], object] | None) -> Guard:
    """The user's `extract_answer`; completions without their white space when None."""
    return Guard(
        extract or str.strip, "extract_answer function", "return the answer as a string, '' where there is none"
    )


def extract(guard: Guard, completion: str) -> Extracted:
    """The answer of one completion; an exception or None makes it empty."""
    try:
        answer = guard.function(completion)
    except Exception as error:
        return Extracted("", f"raised {describe(error)}")
    if isinstance(answer, (str, int, float)):
        return Extracted(str(answer))
    return Extracted("", f"returned {short_form(answer)}")


def count_unextracted(guard: Guard, problems: Sequence[str | None]) -> int:
    """How many extractions failed; a CalibrantError if all of several did."""
    failed = [problem for problem in problems if problem is not None]
    if len(failed) == len(problems) > 1:
        raise CalibrantError(f"{guard.title} {failed[0]}, and failed on all {len(failed)} completions; {guard.wanted}")
    return len(failed)
