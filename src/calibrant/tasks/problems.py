"""Word problems from templates, with right and faulty solutions step by step.

A problem opens with two numbers and has up to three more steps. Numbers stay below 100. The split of a problem depends
on the two numbers that it opens with, whatever their order and operation.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

TEST_SHARE = 0.2
STEPS = (1, 2, 3, 4)
LARGEST = 99
SLIP_RATE = 0.25

NAMES = {
    "He": ("Tom", "Ben", "Ali", "Omar", "Luis", "Ivan", "Jack", "Noah", "Ravi", "Finn", "Kofi", "Yuki"),
    "She": ("Ann", "Mia", "Eva", "Lena", "Sara", "Zoe", "Nora", "Ines", "Aiko", "Ruth", "Maya", "Lucy"),
}
OBJECTS = (
    "pens", "books", "apples", "coins", "stamps", "shells", "marbles", "cards", "eggs", "stones", "beads", "plums",
    "buttons", "cakes", "nuts", "toys", "keys", "cups",
)  # fmt: skip
OPENINGS = {
    "*": (
        "{name} has {a} boxes of {b} {things}.",
        "{name} fills {a} bags with {b} {things} each.",
        "{name} buys {a} packs of {b} {things}.",
    ),
    "+": (
        "{name} has {a} old {things} and {b} new {things}.",
        "{name} finds {a} {things} at home and {b} {things} at school.",
        "{name} has {a} red {things} and {b} blue {things}.",
    ),
    "-": (
        "{name} has {a} {things}, and {b} of them get lost.",
        "{name} had {a} {things} but sold {b}.",
        "Of {a} {things} {name} breaks {b}.",
    ),
}
FOLLOWING = {
    "+": ("{Who} buys {b} more.", "A friend brings {b} more.", "Then {who} finds {b} more."),
    "-": ("{Who} gives away {b}.", "{Who} loses {b} of them.", "Then {who} sells {b}."),
    "*": ("Soon {who} has {b} times as many.", "A year later {who} has {b} times as many."),
    "/": ("{Who} shares them equally among {b} bags and keeps one bag.", "{Who} makes {b} equal piles and keeps one."),
}
QUESTION = "How many {things} does {name} have now?"
APPLY: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}


class Step(NamedTuple):
    """One step of a problem: its sentence, its operation and the operand."""

    sentence: str
    operation: str
    number: int


class Problem(NamedTuple):
    """A word problem: a start number and the steps that change it."""

    start: int
    steps: tuple[Step, ...]
    question: str

    @property
    def text(self) -> str:
        """The problem as text."""
        return " ".join([*(step.sentence for step in self.steps), self.question])

    @property
    def answer(self) -> int:
        """The right answer."""
        total = self.start
        for step in self.steps:
            total = APPLY[step.operation](total, step.number)
        return total


def problems(split: str, rng: random.Random) -> Iterator[Problem]:
    """Endless problems of a split, with one to four steps equally often."""
    while True:
        yield problem(split, rng.choice(STEPS), rng)


def problem(split: str, steps: int, rng: random.Random) -> Problem:
    """A problem of a split with `steps` steps."""
    pronoun = rng.choice(list(NAMES))
    words = {"name": rng.choice(NAMES[pronoun]), "things": rng.choice(OBJECTS), "Who": pronoun, "who": pronoun.lower()}
    operation, start, number = _opening(split, rng)
    sentence = rng.choice(OPENINGS[operation]).format(a=start, b=number, **words)
    chain, total = [Step(sentence, operation, number)], APPLY[operation](start, number)
    while len(chain) < steps:
        operation, number = _following(total, rng)
        sentence = rng.choice(FOLLOWING[operation]).format(b=number, **words)
        chain.append(Step(sentence, operation, number))
        total = APPLY[operation](total, number)
    return Problem(start, tuple(chain), QUESTION.format(**words))


def side_of(a: int, b: int) -> str:
    """The split of problems that open with `a` and `b`, in either order."""
    digest = hashlib.sha256(f"{min(a, b)} {max(a, b)}".encode()).digest()
    return "test" if digest[0] < 256 * TEST_SHARE else "train"


def _opening(split: str, rng: random.Random) -> tuple[str, int, int]:
    while True:
        operation = rng.choice(list(OPENINGS))
        most = 9 if operation == "*" else 50
        a, b = rng.randint(2, most), rng.randint(2, most)
        if 1 <= APPLY[operation](a, b) <= LARGEST and side_of(a, b) == split:
            return operation, a, b


def _following(total: int, rng: random.Random) -> tuple[str, int]:
    """Operation and operand of a step whose result is from 1 to `LARGEST`."""
    while True:
        operation = rng.choice(list(FOLLOWING))
        number = rng.randint(2, 9 if operation in "*/" else 30)
        whole = operation != "/" or total % number == 0
        if whole and 1 <= APPLY[operation](total, number) <= LARGEST:
            return operation, number


def solution(problem: Problem) -> str:
    """The right solution, step by step.

    >>> steps = (Step("Tom has 3 boxes of 4 pens.", "*", 4), Step("He gives away 5.", "-", 5))
    >>> solution(Problem(3, steps, "How many pens does Tom have now?"))
    'Tom has 3 boxes of 4 pens. 3 * 4 = 12. He gives away 5. 12 - 5 = 7. The answer is 7.'
    """
    return _written(problem, lambda step, total: (step.operation, APPLY[step.operation](total, step.number)))


def noisy_solution(problem: Problem, rng: random.Random, slip_rate: float = SLIP_RATE) -> str:
    """A solution for the warm start in which each step goes wrong with probability `slip_rate`.

    A wrong step has a wrong result, a wrong operation, or is skipped, equally often; later steps use its result. At the
    default about half of all problems of one to four steps end right: the mean of `0.75 ** steps` is 0.51.
    """

    def faulty(step: Step, total: int) -> tuple[str, int] | None:
        right = APPLY[step.operation](total, step.number)
        if rng.random() >= slip_rate:
            return step.operation, right
        return rng.choice((_wrong_result, _wrong_operation, _skipped))(step, total, right, rng)

    return _written(problem, faulty)


def _wrong_result(step: Step, total: int, right: int, rng: random.Random) -> tuple[str, int]:
    near = (right - 10, right - 1, right + 1, right + 10)
    return step.operation, rng.choice([n for n in near if (n < 0) == (right < 0)])


def _wrong_operation(step: Step, total: int, right: int, rng: random.Random) -> tuple[str, int]:
    results = {op: APPLY[op](total, step.number) for op in "+-*" if op != step.operation}
    return rng.choice([(op, n) for op, n in results.items() if n != right])


def _skipped(step: Step, total: int, right: int, rng: random.Random) -> None:
    return None


def _written(problem: Problem, work: Callable[[Step, int], tuple[str, int] | None]) -> str:
    total, parts = problem.start, []
    for step in problem.steps:
        done = work(step, total)
        if done is not None:
            operation, result = done
            parts.append(f"{step.sentence} {total} {operation} {step.number} = {result}.")
            total = result
    return " ".join([*parts, f"The answer is {total}."])
