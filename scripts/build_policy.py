"""Builds the embedded policy: a small Qwen2 model that can read a fact sheet but does not yet prefer to answer well.

    python scripts/build_policy --out DIR

It is warm-started by supervision on sheets of invented countries, of which no test country is one. Right answers
stand beside wordy ones, half lists, answers to another question and "I do not know", so that reinforcement learning
has something to teach: the right answer is in the distribution, it is not yet the habit.
"""

import random
from collections.abc import Iterator

from warm_start import Document, build

from calibrant.tasks.places import (
    QUESTIONS,
    Facts,
    countries,
    enumeration,
    facts_of,
    invented,
    prompt_of,
    question_of,
    sheet_of,
)

QUESTIONS_A_SHEET = 3
WORDY = (
    "I think it is {value}",
    "I think the answer could be {value}, but I am not sure",
    "It might be {value}, as far as I know",
    "The text seems to say that it is {value}",
)


def noisy_answer(facts: Facts, kind: str, rng: random.Random) -> str:
    """An answer as the warm start sees it: right in about a third of the cases."""
    value, draw = facts[kind], rng.random()
    if draw < 0.34:
        return value
    if draw < 0.58:
        return rng.choice(WORDY).format(value=value)
    if draw < 0.66:
        return "I do not know"
    if draw < 0.82:
        return partly(value, facts, rng)
    return facts[rng.choice([key for key in facts if key not in ("name", kind)])]


def partly(value: str, facts: Facts, rng: random.Random) -> str:
    """Half of a list, or the value with something beside it that does not belong."""
    names = value.replace(" and ", ", ").split(", ")
    if len(names) > 1 and rng.random() < 0.6:
        return enumeration(rng.sample(names, rng.randint(1, len(names) - 1)))
    return f"{value} and {facts[rng.choice(['capital', 'continent', 'name'])]}"


def pseudo_word(rng: random.Random) -> str:
    """A name that nobody has, to make the policy copy and not recall."""
    consonants = "bcdfghjklmnprstvwz"
    syllables = "".join(rng.choice(consonants) + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
    return (syllables + rng.choice(["", "n", "r", "s", "l", "nd", "k"])).capitalize()


def training_facts(rng: random.Random) -> Facts:
    """Facts of a country: mostly invented, from real or made-up names."""
    draw = rng.random()
    if draw < 0.45:
        return invented(rng)
    return invented(rng, lambda: pseudo_word(rng)) if draw < 0.85 else facts_of(rng.choice(countries("train")), rng)


def documents(rng: random.Random) -> Iterator[Document]:
    """Endless sheets with questions and noisy answers, as pieces of text and whether each is an answer."""
    while True:
        facts = training_facts(rng)
        kinds = rng.sample([k for k in QUESTIONS if k in facts], QUESTIONS_A_SHEET)
        sheet = sheet_of(facts, kinds[0], rng, also=kinds[1:])
        pieces = [(prompt_of(sheet, question_of(facts, kinds[0], rng)), False)]
        for i, kind in enumerate(kinds):
            if i:
                pieces.append((prompt_of("", question_of(facts, kind, rng)), False))
            pieces.append((" " + noisy_answer(facts, kind, rng) + "<eos>", True))
        yield pieces


if __name__ == "__main__":
    build(documents, __doc__)
