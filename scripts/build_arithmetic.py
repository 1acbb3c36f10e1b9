"""Builds the embedded policy of `arithmetic`: a small Qwen2 model that knows how problems are solved, and slips.

    python scripts/build_arithmetic --out first --steps 1000 --batch 64
    python scripts/build_arithmetic --out second --steps 1400 --batch 64 --start-from first --seed 1

It is warm-started on solutions of training problems in which each step goes wrong with some probability: a wrong
result, the wrong operation, a step left out. Reinforcement learning has to make it careful.
"""

import random
from collections.abc import Iterator

from solutions import noisy_solution
from warm_start import Document, build

from calibrant.tasks.arithmetic import problem_prompt
from calibrant.tasks.problems import problems


def documents(rng: random.Random) -> Iterator[Document]:
    """Endless problems of the training split, each with a faulty solution."""
    for problem in problems("train", rng):
        yield [(problem_prompt(problem), False), (f" {noisy_solution(problem, rng)}<eos>", True)]


if __name__ == "__main__":
    build(documents, __doc__)
