"""Tasks of mathematics: prompt, final answer, and the reward 2 x correct; a verifier judges each batch in one call."""

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache

from torch import Tensor

from calibrant.tasks.base import Row, Task, loader, splits_of
from calibrant.tasks.cells import number_text
from calibrant.tasks.files import Record
from calibrant.tasks.sources import Item, Source
from calibrant.text.extract import boxed, final_answer, stated_answer
from calibrant.text.keys import number
from calibrant.text.maths.clusters import symbolic_clusters
from calibrant.text.maths.verify import Verifier
from calibrant.text.metrics import answer_pairs

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def maths_task(
    name: str, summary: str, *, source: Source | None, max_completion_length: int, train_task: str | None = None
) -> Task:
    """A task of mathematics with one final answer; the arguments are fields of `Task`.

    The reward is 2 if the final answer equals a reference, else 0 (GCPO, table 5). The whole completion is embedded
    (appendix E.3), and clusters are solutions with equal final answers, an interpretation.
    """
    return Task(
        name=name,
        summary=summary,
        splits=splits_of(source),
        load=loader(name, source, maths_row),
        extract=final_answer,
        reward=correctness_reward,
        reward_range=(0.0, 2.0),
        metrics={},
        correct=lambda answer, references: judge([answer], [references])[0] is True,
        key=answer_key,
        meaning="completion",
        max_completion_length=max_completion_length,
        kind="maths",
        reward_name="2 x correct",
        source=source,
        train_task=train_task,
        judge=judge,
        cluster=clusters,
        completion_of=lambda reference: f"\\boxed{{{reference}}}",
    )


def maths_row(item: Item) -> Row:
    """A problem as plain text, and as a system message with the instruction and a user message."""
    return {
        "prompt_id": item.id,
        "prompt": f"{INSTRUCTION}\n\nProblem: {item.question}\nSolution:",
        "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": item.question}],
        "references": item.answers,
    }


def parse_problem(record: Record) -> Iterable[Item]:
    """Yields a problem with its `answer`, or with the boxed answer of its `solution`."""
    question = record["problem"] if "problem" in record else record["question"]
    answer = number_text(record["answer"]) if "answer" in record else boxed_answer(record["solution"])
    name = next((record[field] for field in ("unique_id", "id", "idx") if field in record), None)
    yield Item(number_text(name), question, [answer])


def boxed_answer(solution: str) -> str:
    r"""The content of the last `\boxed{...}` of a solution, or else of `\boxed x` without braces; "" if it has neither.

    Two solutions of MATH have the form without braces.

    >>> boxed_answer(r"our answer is $\boxed 2$."), boxed_answer(r"so \boxed{\frac{1}{2}}."), boxed_answer("none")
    ('2', '\\frac{1}{2}', '')
    """
    unbraced = re.findall(r"\\boxed\s+([^\s{}$]+)", solution)
    return boxed(solution) or (unbraced[-1] if unbraced else "")


def answer_key(text: str) -> str:
    r"""The boxed or stated answer of a solution in canonical form; that of the text if it has neither.

    >>> answer_key(r"so x = \boxed{0.5}") == answer_key(r"The answer is $\frac{1}{2}$.") == answer_key("1/2")
    True
    """
    return number(boxed(text) or stated_answer(text) or text)


def clusters(groups: Sequence[Sequence[str]]) -> Tensor:
    """Clusters `[N, G]` of solutions with mathematically equal final answers; one without an answer is alone."""
    return symbolic_clusters([[final_answer(text) for text in group] for group in groups], verifier())


def judge(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[bool | None]:
    """Whether each of B answers equals one of its references; None if unscorable.

    Answers with the key of a reference are correct; the verifier decides the others in one call.
    """
    pairs = answer_pairs(answers, references)
    same = [number(answer) in filter(None, map(number, group)) for answer, group in pairs]
    unequal = [pair for pair, equal in zip(pairs, same, strict=True) if not equal]
    verdicts = iter(verifier().verify(unequal)) if unequal else iter(())
    return [True if equal else next(verdicts) for equal in same]


def correctness_reward(answer: str, references: Sequence[str]) -> float:
    """2 for a correct answer, 0 for a wrong one, NaN for an unscorable one."""
    verdict = judge([answer], [references])[0]
    return math.nan if verdict is None else 2.0 * verdict


@cache
def verifier() -> Verifier:
    """The verifier of this process, created on first use."""
    return Verifier()
