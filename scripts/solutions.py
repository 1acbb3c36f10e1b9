"""Right and faulty solutions of word problems, for the warm start of the policy of `arithmetic`."""

import random
from collections.abc import Callable

from calibrant.tasks.problems import APPLY, Problem, Step

SLIP_RATE = 0.25


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
