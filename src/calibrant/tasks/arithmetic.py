"""`arithmetic`: word problems from templates, to be solved step by step.

The reward is 2 where the last sentence gives the right number, else 0; the whole solution carries the meaning, as the
paper has it for mathematics (GCPO, appendix E.3). No training problem opens with the two numbers of a test problem.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from calibrant.tasks.base import Row, Task, check_split, refuse_data_dir
from calibrant.tasks.problems import Problem, problems
from calibrant.text.extract import last_number, stated_answer
from calibrant.text.keys import number

ROWS = {"train": 4000, "test": 500}
INSTRUCTION = 'Solve the problem step by step and end with "The answer is" and the number.'


def load(split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
    """Problems of a split, all different; the same arguments give the same rows.

    Args:
        split: "train" or "test".
        size: number of rows; when None 4000 for "train" and 500 for "test".
        seed: of the generator.
        data_dir: refused: the problems are made here.

    Raises:
        CalibrantError: another split, or a folder of data.
    """
    refuse_data_dir("arithmetic", data_dir)
    check_split("arithmetic", split, tuple(ROWS))
    made: dict[str, Problem] = {}
    stream = problems(split, random.Random(f"arithmetic {split} {seed}"))
    while len(made) < (ROWS[split] if size is None else size):
        new = next(stream)
        made.setdefault(new.text, new)
    return [row_of(f"{split}-{seed}-{i}", each) for i, each in enumerate(made.values())]


def row_of(prompt_id: str, problem: Problem) -> Row:
    """A problem as plain text, and as one user turn with the instruction."""
    return {
        "prompt_id": prompt_id,
        "prompt": prompt_of(problem),
        "messages": [{"role": "user", "content": f"{INSTRUCTION}\n\n{problem.text}"}],
        "references": [str(problem.answer)],
    }


def prompt_of(problem: Problem) -> str:
    """The text that a policy continues with its solution."""
    return f"{problem.text}\nSolution:"


def extract(completion: str) -> str:
    """The number that a completion states as its answer last; an empty string where it states none.

    >>> extract(" 3 * 4 = 12. The answer is 12."), extract("3 * 4 = 12.")
    ('12', '')
    """
    return last_number(stated_answer(completion))


def correct(answer: str, references: Sequence[str]) -> bool:
    """Whether an extracted number is the right one."""
    return number(answer) in map(number, references)


def key(text: str) -> str:
    """The final number of a solution, or of an answer alone; the text itself where it states none.

    >>> key("3 * 4 = 12. The answer is 12."), key("12"), key("")
    ('12', '12', '')
    """
    return number(extract(text) or text)


TASK = Task(
    name="arithmetic",
    summary="word problems from templates, solved step by step",
    splits=tuple(ROWS),
    load=load,
    extract=extract,
    reward=lambda answer, references: 2.0 * correct(answer, references),
    reward_range=(0.0, 2.0),
    metrics={},
    correct=correct,
    key=key,
    meaning="completion",
    max_completion_length=192,
    kind="maths",
    reward_name="2 x correct",
)
