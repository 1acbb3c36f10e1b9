"""`places`: reading comprehension over fact sheets of countries, made from GeoNames data.

A sheet is a few sentences in random order about one country; a question asks for one of its facts. Answers are free
text; lists of neighbours or cities earn partial credit by token F1.

Splits are by country. Training sheets describe countries invented from real place names, so that the policy has to read
rather than recall, or real countries of the training split; none of them contains the name of a test country, of its
capital, or of one of its cities.
"""

import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from calibrant.demo import load_places
from calibrant.files import JsonObject
from calibrant.tasks.base import Row, Task, check_embedded
from calibrant.text.extract import first_line
from calibrant.text.metrics import exact_match, normalise_answer, token_f1

INVENTED_SHARE = 0.75  # of training questions: those about an invented country
TRAIN_ROWS = 4000  # questions of the training split by default
FACTS_BESIDE = (3, 4)  # fewest and most facts of a sheet that the question does not ask for
LISTED = 4  # most names in a list of neighbours or cities

SENTENCES: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital of {name} is {value}.",
        "{value} is the capital of {name}.",
        "{name} is ruled from {value}.",
    ),
    "currency": ("People in {name} pay with the {value}.", "The currency of {name} is the {value}."),
    "continent": ("{name} lies in {value}.", "{name} is a country in {value}."),
    "population": ("About {value} people live in {name}.", "{name} has {value} inhabitants."),
    "area": ("{name} covers {value}.", "The area of {name} is {value}."),
    "neighbours": ("{name} borders {value}.", "The neighbours of {name} are {value}."),
    "cities": ("Large cities of {name} are {value}.", "{name} has the cities {value}."),
}
QUESTIONS: dict[str, tuple[str, ...]] = {
    "capital": ("What is the capital of {name}?", "Which city is the capital of {name}?"),
    "currency": ("What is the currency of {name}?", "What do people in {name} pay with?"),
    "continent": ("In which continent does {name} lie?", "Which continent is {name} in?"),
    "population": ("How many people live in {name}?", "What is the population of {name}?"),
    "area": ("How large is {name}?", "What is the area of {name}?"),
    "neighbours": ("Which countries border {name}?", "What are the neighbours of {name}?"),
    "cities": ("Which large cities does {name} have?", "Name large cities of {name}."),
}

Facts = dict[str, str]
Country = JsonObject


def load_questions(split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
    """`size` questions of a split; when None, 4,000 of "train", or one for each fact of each country of "test".

    `seed` draws facts, wordings and order.
    """
    check_embedded("places", split, ("train", "test"), data_dir)
    rng = random.Random(f"places {split} {seed}")
    if split == "train":
        return [_row(f"train-{seed}-{i}", rng, *train_item(rng)) for i in range(TRAIN_ROWS if size is None else size)]
    pairs = [(facts_of(c, rng), kind) for c in countries("test") for kind in QUESTIONS]
    pairs = [(facts, kind) for facts, kind in pairs if kind in facts]
    rng.shuffle(pairs)
    return [_row(f"test-{seed}-{i}", rng, *pair) for i, pair in enumerate(pairs[:size])]


def train_item(rng: random.Random) -> tuple[Facts, str]:
    """The facts of an invented or a real training country, and the fact to ask for."""
    facts = invented(rng) if rng.random() < INVENTED_SHARE else facts_of(rng.choice(countries("train")), rng)
    return facts, rng.choice([kind for kind in QUESTIONS if kind in facts])


@cache
def countries(split: str) -> tuple[Country, ...]:
    """The countries of a split in GeoNames, territories included.

    No name in the training split contains one of the test split, as South Sudan contains Sudan.
    """
    chosen = tuple(c for c in load_places()["countries"] if c["split"] == split)
    if split == "test":
        return chosen
    return tuple(
        c | {key: [name for name in c[key] if not _names_test_place(name)] for key in ("neighbours", "cities")}
        for c in chosen
        if not _names_test_place(f"{c['name']}, {c['capital']}")
    )


@cache
def cities() -> tuple[str, ...]:
    """Names of cities for invented sheets; none contains a name of the test split."""
    return tuple(name for name in load_places()["cities"] if not _names_test_place(name))


def _names_test_place(text: str) -> bool:
    return bool(_test_names().search(text))


@cache
def _test_names() -> re.Pattern[str]:
    test = countries("test")
    anywhere = {re.escape(name) for c in test for name in (c["name"], c["capital"])}
    as_words = {rf"\b{re.escape(city)}\b" for c in test for city in c["cities"]}
    return re.compile("|".join(sorted(anywhere) + sorted(as_words)))


def facts_of(country: Country, rng: random.Random) -> Facts:
    """The facts of a country as texts; lists are a few names in random order, left out if empty."""
    facts = {key: country[key] for key in ("name", "capital", "currency", "continent")}
    facts["population"] = people(country["population"])
    facts["area"] = f"{country['area']} square kilometres"
    for key in ("neighbours", "cities"):
        names = [name for name in country[key] if name != country["capital"]]
        if names:
            facts[key] = enumeration(rng.sample(names, min(len(names), rng.randint(2, LISTED))))
    return facts


def invented(rng: random.Random, names: Callable[[], str] | None = None) -> Facts:
    """Facts of a country that does not exist; `names` draws a place name; by default a city or training country."""
    real = countries("train")
    place = names or (lambda: rng.choice(cities()) if rng.random() < 0.8 else rng.choice(real)["name"])
    several = lambda: enumeration(list(dict.fromkeys(place() for _ in range(rng.randint(2, LISTED)))))  # noqa: E731
    return {
        "name": place(),
        "capital": place(),
        "currency": rng.choice(real)["currency"],
        "continent": rng.choice(load_places()["continents"]),
        "population": people(int(10 ** rng.uniform(4.5, 8.5))),
        "area": f"{int(10 ** rng.uniform(2.5, 6.5))} square kilometres",
        "neighbours": several(),
        "cities": several(),
    }


def people(number: int) -> str:
    """A rounded number of people.

    >>> people(66_987_244), people(383_071)
    ('67 million', '383 thousand')
    """
    if number < 1_000_000:
        return f"{max(1, round(number / 1000))} thousand"
    millions = number / 1e6
    return f"{millions:.1f} million" if millions < 10 else f"{millions:.0f} million"


def enumeration(names: list[str]) -> str:
    """Names joined by commas and "and".

    >>> enumeration(["Lyon", "Nice", "Paris"])
    'Lyon, Nice and Paris'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def sheet_of(facts: Facts, kind: str, rng: random.Random, also: Sequence[str] = ()) -> str:
    """A few sentences in random order, including the facts `kind` and `also`."""
    asked = [kind, *also]
    others = [key for key in SENTENCES if key in facts and key not in asked]
    shown = [*asked, *rng.sample(others, min(len(others), max(0, rng.randint(*FACTS_BESIDE) - len(also))))]
    rng.shuffle(shown)
    return " ".join(rng.choice(SENTENCES[k]).format(name=facts["name"], value=facts[k]) for k in shown)


def question_of(facts: Facts, kind: str, rng: random.Random) -> str:
    """A question for one fact."""
    return rng.choice(QUESTIONS[kind]).format(name=facts["name"])


def prompt_of(sheet: str, question: str) -> str:
    """The text that a policy completes with its answer."""
    return f"{sheet}\nQuestion: {question}\nAnswer:"


def _row(prompt_id: str, rng: random.Random, facts: Facts, kind: str) -> Row:
    prompt = prompt_of(sheet_of(facts, kind, rng), question_of(facts, kind, rng))
    return {"prompt_id": prompt_id, "prompt": prompt, "references": [facts[kind]]}


TASK = Task(
    name="places",
    summary="questions about fact sheets of countries, from GeoNames",
    splits=("train", "test"),
    load=load_questions,
    extract=first_line,
    reward=lambda answer, references: 2.0 * token_f1(answer, references),  # GCPO, table 5
    reward_range=(0.0, 2.0),
    metrics={"f1": token_f1, "em": exact_match},
    correct=lambda answer, references: token_f1(answer, references) > 0.5,
    key=normalise_answer,
    meaning="answer",
    max_completion_length=32,
)
