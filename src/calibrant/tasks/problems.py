"""Word problems from templates.

A problem opens with two numbers and has up to three more steps. Numbers stay below 100. The split of a problem depends
on the two numbers that it opens with, not on their order or operation.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

TEST_SHARE = 0.2  # of the pairs of opening numbers
STEPS = (1, 2, 3, 4)  # steps of a problem, the opening included
LARGEST = 99  # of all numbers in a problem, intermediate results included

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
        """All sentences of the problem."""
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


def problem_split(a: int, b: int) -> str:
    """The split of problems that open with `a` and `b`, in either order."""
    digest = hashlib.sha256(f"{min(a, b)} {max(a, b)}".encode()).digest()
    return "test" if digest[0] < 256 * TEST_SHARE else "train"


def _opening(split: str, rng: random.Random) -> tuple[str, int, int]:
    while True:
        operation = rng.choice(list(OPENINGS))
        most = 9 if operation == "*" else 50
        a, b = rng.randint(2, most), rng.randint(2, most)
        if 1 <= APPLY[operation](a, b) <= LARGEST and problem_split(a, b) == split:
            return operation, a, b


def _following(total: int, rng: random.Random) -> tuple[str, int]:
    """Operation and operand of a step whose result is from 1 to `LARGEST`."""
    while True:
        operation = rng.choice(list(FOLLOWING))
        number = rng.randint(2, 9 if operation in "*/" else 30)
        whole = operation != "/" or total % number == 0
        if whole and 1 <= APPLY[operation](total, number) <= LARGEST:
            return operation, number
