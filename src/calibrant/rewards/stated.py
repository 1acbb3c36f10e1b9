"""Rewards of the confidence that a completion states in words."""

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from calibrant.text.inputs import by_key
from calibrant.text.keys import number

log = logging.getLogger(__name__)

CONFIDENCE_PROMPT = (
    "Give your answer between <answer> and </answer>. Then say how sure you are that it is right: a number between 0 "
    "and 1, between <confidence> and </confidence>."
)
"""An instruction, to be added to a prompt, that asks for what `stated_answer` and `stated_confidence` read."""

_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|(?=<confidence>)|\Z)", re.DOTALL | re.IGNORECASE)
_NUMBER = r"([0-9]*\.?[0-9]+)\s*(%?)"
_TAGGED = re.compile(rf"<confidence>\s*{_NUMBER}\s*</confidence>", re.IGNORECASE)
_WORDED = re.compile(rf"\bconfidence\b\s*(?:is|of|:|=)?\s*{_NUMBER}(?![0-9])", re.IGNORECASE)
_STATEMENT = re.compile(r"<confidence>.*?(?:</confidence>|\Z)", re.DOTALL | re.IGNORECASE)


def stated_confidence(completion: object) -> float | None:
    """The confidence in [0, 1] that a completion states last; None if it states none, or none in that range.

    Read from `<confidence>0.8</confidence>`, else from words: `confidence: 80%`. Percentages are divided by 100.

    >>> stated_confidence("<answer>42</answer> <confidence>0.8</confidence>"), stated_confidence("Confidence: 80%")
    (0.8, 0.8)
    >>> stated_confidence("<confidence>7</confidence>"), stated_confidence("no idea")
    (None, None)
    """
    text = _text(completion)
    found = _TAGGED.findall(text) or _WORDED.findall(text)
    if not found:
        return None
    value = float(found[-1][0]) / (100 if found[-1][1] else 1)
    return value if 0 <= value <= 1 else None


def stated_answer(completion: object) -> str:
    """The answer of a completion: what is tagged `<answer>` last, else all of it but for the stated confidence.

    >>> stated_answer("so it is <answer> Oslo </answer><confidence>0.5</confidence>"), stated_answer("Oslo")
    ('Oslo', 'Oslo')
    """
    text = _text(completion)
    found = _ANSWER.findall(text)
    return (found[-1] if found else _STATEMENT.sub("", text)).strip()


def equal_answer(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer equals a reference: as a number, else after SQuAD's normalisation.

    >>> equal_answer("the 1,000", ["1e3"]), equal_answer("1,000", ["1e3"]), equal_answer("", [""])
    (False, True, False)
    """
    key = number(answer)
    return bool(key) and any(key == number(reference) for reference in references)


def brier(
    completions: Sequence[object],
    references: Sequence[object],
    *,
    is_correct: Callable[[str, list[str]], bool | None] = equal_answer,
    **_: object,
) -> list[float | None]:
    """RLCR: `c - (q - c)^2` with correctness c (1 or 0) and the stated confidence q, in [-1, 1].

    In expectation it is largest if the answer is the likeliest one and q its probability. Without the first term a
    wrong answer with the confidence 0 would score as well as a right one with 1. A completion that states no confidence
    has the squared error 1, so that leaving it out never pays (c).

    `references` is the column of right answers, a text or a list of texts per row; None, as a verdict None of
    `is_correct`, makes a completion unscorable. Other judges: `functools.partial(brier, is_correct=my_judge)`.

    Reference: Beyond Binary Rewards (arXiv:2507.16806), the sum of correctness and Brier score (b); its own format
    reward, and an analysis before the confidence, are left out.

    >>> texts = [f"<answer>{a}</answer><confidence>{q}</confidence>" for a, q in (("42", 1), ("42", 0.5), ("7", 0.9))]
    >>> brier([*texts, "<answer>42</answer>"], ["42"] * 4)
    [1.0, 0.75, -0.81, 0.0]
    """
    return [
        _scored(completion, reference, is_correct)
        for completion, reference in zip(completions, references, strict=True)
    ]


def _scored(completion: object, reference: Any, is_correct: Callable[[str, list[str]], bool | None]) -> float | None:
    if reference is None:
        return None
    right = [str(x) for x in (reference if isinstance(reference, (list, tuple)) else [reference])]
    verdict = is_correct(stated_answer(completion), right)
    if verdict is None:
        return None
    correct, confidence = float(verdict), stated_confidence(completion)
    error = 1.0 if confidence is None else (confidence - correct) ** 2
    return round(correct - error, 12)


def semantic_calibration(
    completions: Sequence[object],
    prompts: Sequence[object],
    *,
    key: Callable[[str], str] = number,
    **_: object,
) -> list[float]:
    """`1 - (q - s)^2` with the stated confidence q and the share s of the group whose answers mean the same, in [0, 1].

    No references are needed: the confidence is to say how often the policy would give this answer. A completion that
    states no confidence has 0. A group are consecutive completions of one prompt; `key` makes a text of an answer,
    equal for equal meaning, and answers without one agree with nobody.

    Alone it can be had without being right: any answer that the policy always gives, with the confidence 1, has the
    largest reward, and self-training on agreement was seen to end there (arXiv:2505.21444). Add it to a reward that
    judges the answer. Interpretation (c); the share of a meaning as confidence is that of semantic entropy.

    >>> texts = [f"<answer>{a}</answer><confidence>{q}</confidence>" for a, q in ((1, 0.5), (1, 1), (2, 0.25), (3, 0))]
    >>> semantic_calibration(texts, ["?"] * 4)
    [1.0, 0.75, 1.0, 0.9375]
    """
    warn_of_collapse("semantic_calibration", "agreement with itself")
    rewards: list[float] = []
    for group in _groups(completions, prompts):
        clusters = by_key(key)([[stated_answer(completion) for completion in group]])[0].tolist()
        for completion, cluster in zip(group, clusters, strict=True):
            confidence = stated_confidence(completion)
            share = clusters.count(cluster) / len(group)
            rewards.append(0.0 if confidence is None else 1.0 - (confidence - share) ** 2)
    return rewards


@cache
def warn_of_collapse(name: str, what: str) -> None:
    """Warns once per process that a reward of the policy's own making was seen to collapse."""
    log.warning(
        "the reward '%s' rewards %s and knows nothing of right and wrong; optimised alone it was seen to collapse: use "
        "it beside a reward that judges the answer, and watch the accuracy",
        *(name, what),
    )


def _groups(completions: Sequence[object], prompts: Sequence[object]) -> Iterator[list[object]]:
    """Consecutive completions of equal prompts."""
    pairs = zip(map(repr, prompts), completions, strict=True)
    for _, rows in groupby(pairs, key=lambda pair: pair[0]):
        yield [completion for _, completion in rows]


def _text(completion: object) -> str:
    """The text of a completion: itself, or the content of the last message of a chat."""
    if isinstance(completion, str):
        return completion
    last = completion[-1] if isinstance(completion, (list, tuple)) and completion else {}
    content = last.get("content") if isinstance(last, dict) else None
    if isinstance(content, (list, tuple)):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def log_confidence(completion: object) -> float:
    """The logarithm of the stated confidence, NaN where none is stated: the form in which calibration reads it.

    >>> log_confidence("confidence 100%"), log_confidence("")
    (0.0, nan)
    """
    confidence = stated_confidence(completion)
    return math.nan if confidence is None else math.log(max(confidence, 1e-12))


setattr(brier, "reward_range", (-1.0, 1.0))  # noqa: B010  which reward dispersion reads
setattr(semantic_calibration, "reward_range", (0.0, 1.0))  # noqa: B010
