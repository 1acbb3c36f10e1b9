"""What mathematics has in common: prompt, final answer, reward 2 x correct, decided by a verifier a batch at a time."""

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from calibrant.tasks.base import Row, Task
from calibrant.tasks.files import Record
from calibrant.tasks.loading import loader
from calibrant.tasks.sources import Item, Source
from calibrant.text.extract import boxed, final_answer, stated_answer
from calibrant.text.keys import number
from calibrant.text.maths.clusters import symbolic_clusters
from calibrant.text.maths.verify import Verifier

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def maths_task(
    name: str,
    summary: str,
    *,
    source: Source,
    splits: tuple[str, ...],
    max_completion_length: int,
    train_task: str | None = None,
) -> Task:
    """A task of mathematics with one final answer.

    The reward is 2 where the final answer equals a reference, else 0 (GCPO, table 5); the whole completion carries
    the meaning (appendix E.3): it is embedded, and clusters are of solutions with equal final answers (c).

    Args:
        name: of the task.
        summary: one line.
        source: where its rows come from.
        splits: that it has, training split first, evaluation split last.
        max_completion_length: tokens that a completion may take.
        train_task: the task that trains a policy for it, where it has no training split.
    """
    return Task(
        name=name,
        summary=summary,
        splits=splits,
        load=loader(name, source, splits, row_of),
        extract=final_answer,
        reward=reward,
        reward_range=(0.0, 2.0),
        metrics={},
        correct=lambda answer, references: judge([answer], [references])[0] is True,
        key=key,
        meaning="completion",
        max_completion_length=max_completion_length,
        kind="maths",
        reward_name="2 x correct",
        source=source,
        train_task=train_task,
        judge=judge,
        cluster=clusters,
    )


def row_of(item: Item) -> Row:
    """A problem as plain text, and as a system turn with the instruction and a user turn."""
    return {
        "prompt_id": item.id,
        "prompt": f"{INSTRUCTION}\n\nProblem: {item.question}\nSolution:",
        "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": item.question}],
        "references": item.answers,
    }


def parse(record: Record) -> Iterable[Item]:
    """A problem with its answer, or with a solution whose last box holds it."""
    question = record["problem"] if "problem" in record else record["question"]
    answer = as_text(record["answer"]) if "answer" in record else answer_of(record["solution"])
    name = next((record[field] for field in ("unique_id", "id", "idx") if field in record), None)
    yield Item(as_text(name), question, [answer])


def answer_of(solution: str) -> str:
    r"""What the last box of a written solution holds; two solutions of MATH box a digit without braces.

    >>> answer_of(r"our answer is $\boxed 2$."), answer_of(r"so \boxed{\frac{1}{2}}."), answer_of("none")
    ('2', '\\frac{1}{2}', '')
    """
    unbraced = re.findall(r"\\boxed\s+([^\s{}$]+)", solution)
    return boxed(solution) or (unbraced[-1] if unbraced else "")


def as_text(value: Any) -> str:
    r"""A number or a text as text; a whole number has no decimals.

    >>> as_text(27.0), as_text(0.5), as_text("27.0"), as_text(None)
    ('27', '0.5', '27.0', '')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def key(text: str) -> str:
    r"""The answer that a solution boxes or states, in canonical form; the text itself where it does neither.

    >>> key(r"so x = \boxed{0.5}") == key(r"The answer is $\frac{1}{2}$.") == key("1/2")
    True
    """
    return number(boxed(text) or stated_answer(text) or text)


def clusters(groups: Sequence[Sequence[str]]) -> Tensor:
    """Clusters `[N, G]` of solutions whose final answers are mathematically equal; one without an answer is alone."""
    return symbolic_clusters([[final_answer(text) for text in group] for group in groups], verifier())


def judge(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[bool | None]:
    """Whether each of B answers equals one of its references; None where the verifier cannot say.

    Answers with the key of a reference are correct; the verifier is asked for the others, all at once.
    """
    same = [_same_key(answer, group) for answer, group in zip(answers, references, strict=True)]
    asked = [(answers[i], references[i]) for i, equal in enumerate(same) if not equal]
    verdicts = iter(verifier().verify(asked)) if asked else iter(())
    return [True if equal else next(verdicts) for equal in same]


def _same_key(answer: str, references: Sequence[str]) -> bool:
    own = number(answer)
    return bool(own) and own in map(number, references)


def reward(answer: str, references: Sequence[str]) -> float:
    """2 for a correct answer, 0 for a wrong one, NaN for one that cannot be judged; one at a time, which is slow."""
    right = judge([answer], [references])[0]
    return math.nan if right is None else 2.0 * right


@cache
def verifier() -> Verifier:
    """The verifier of this process, started when the first answer is judged."""
    return Verifier()
