"""`arithmetic`: word problems from templates, to be solved step by step.

The reward is 2 if the stated answer is right, else 0; the whole solution is embedded and clustered, as in the paper for
mathematics (GCPO, appendix E.3). No training problem opens with the two numbers of a test problem.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from calibrant.tasks.base import Row, Task, check_embedded
from calibrant.tasks.problems import Problem, problems
from calibrant.text.extract import last_number, stated_answer
from calibrant.text.keys import number
from calibrant.text.metrics import reference_list

ROWS = {"train": 4000, "test": 500}  # problems per split by default
INSTRUCTION = 'Solve the problem step by step and end with "The answer is" and the number.'


def load_problems(split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
    """`size` distinct problems of a split, drawn by `seed`; when None, 4,000 of "train" or 500 of "test"."""
    check_embedded("arithmetic", split, tuple(ROWS), data_dir)
    unique: dict[str, Problem] = {}
    stream = problems(split, random.Random(f"arithmetic {split} {seed}"))
    while len(unique) < (ROWS[split] if size is None else size):
        new = next(stream)
        unique.setdefault(new.text, new)
    return [
        {
            "prompt_id": f"{split}-{seed}-{i}",
            "prompt": problem_prompt(problem),
            "messages": [{"role": "user", "content": f"{INSTRUCTION}\n\n{problem.text}"}],
            "references": [str(problem.answer)],
        }
        for i, problem in enumerate(unique.values())
    ]


def problem_prompt(problem: Problem) -> str:
    """The text that a policy completes with its solution."""
    return f"{problem.text}\nSolution:"


def stated_number(completion: str) -> str:
    """The last number that a completion states as its answer; "" if it states none.

    >>> stated_number(" 3 * 4 = 12. The answer is 12."), stated_number("3 * 4 = 12.")
    ('12', '')
    """
    return last_number(stated_answer(completion))


def _correct(answer: str, references: Sequence[str]) -> bool:
    return number(answer) in map(number, reference_list(references))


def solution_key(text: str) -> str:
    """The stated number of a solution, or of an answer alone; the normalised text if it states none.

    >>> solution_key("3 * 4 = 12. The answer is 12."), solution_key("12"), solution_key("")
    ('12', '12', '')
    """
    return number(stated_number(text) or text)


TASK = Task(
    name="arithmetic",
    summary="word problems from templates, solved step by step",
    splits=tuple(ROWS),
    load=load_problems,
    extract=stated_number,
    reward=lambda answer, references: 2.0 * _correct(answer, references),
    reward_range=(0.0, 2.0),
    metrics={},
    correct=_correct,
    key=solution_key,
    meaning="completion",
    max_completion_length=192,
    kind="maths",
    reward_name="2 x correct",
    completion_of=lambda reference: f"The answer is {reference}.",
)
