"""A page per method, made from its docstring and signature so that they cannot drift apart."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from calibrant.methods.calling import (
    hyperparameters,
    name_of,
    optional_inputs,
    required_inputs,
    resolve_method,
    summary,
)
from calibrant.methods.inputs import HYPERPARAMETERS, SOURCES
from calibrant.methods.outcome import Method
from calibrant.methods.recipes import RECIPES
from calibrant.methods.recommended import RECOMMENDED, recommended_values
from calibrant.methods.table import METHODS

LEVELS = (
    "Levels of certainty: (a) read in the authors' code; (a*) read in code of others; (b) read in the paper; "
    "(c) an interpretation where no source says it."
)
SYMBOLS = (
    "Symbols: n rollouts of the group can be scored, normally all G; `A_i` is the base advantage of rollout i, GRPO's "
    "standardised one unless said otherwise, `w` or `w_i` the weight, `A~_i` the advantage that is trained on; "
    "`alpha_G = alpha / ln n`. `ln` is the natural logarithm, and entropies are in nats. An effect `x [low, high]` "
    "multiplies the advantage by a number in that range."
)
FOR_ALL = """## Degenerate cases

They hold for every method:

* A reward that is not finite marks an unscorable rollout: it is out of every statistic, and its advantage is 0. `empo`
  reads no rewards, so there such a rollout counts.
* With fewer than two rollouts that count, the advantage is 0 and the weight 1.
* Rewards without spread (`max - min <= 1e-6`) have an advantage of exactly 0, whatever the weight. Three methods have
  advantages there: `empo` and `grpo_care`, which add or replace a reward, and `egpo` in groups that are all wrong. In
  training `grpo` keeps the rounding errors that TRL has there.
* Advantages and weights are finite for every input, and weights are detached.
"""
"""What holds for all methods and is not repeated on their pages."""

RECIPES_INTRO = """A method is a formula; an experiment is also a model, data and two dozen numbers. `--recipe` of
`calibrant train` and `calibrant analyze` sets all that a paper states, prints each option with its source and level of
certainty, and names what the paper leaves open, which then has calibrant's default. Options that are given come first,
so that `--recipe gcpo --method grpo` is GCPO's baseline under its protocol.

Without a recipe, `--method` brings the settings that its page lists. Where defaults were measured for an embedded
policy, as its learning rate, those stay: a learning rate of 1e-6 moves a model of two million parameters nowhere.
"""
FIELDS = ("Paper", "Per", "Effect", "Certainty", "When", "Scores")
"""The lines of a docstring that a card has; indented lines continue them."""

SECTION = re.compile(rf"^(Args|Returns|Raises|Reference|{'|'.join(FIELDS)}|>>>)", re.MULTILINE)
UNKNOWN = "-"  # stands in a card where the docstring has no such line


class Card(NamedTuple):
    """What a docstring and a signature say about a method, for tables and pages."""

    name: str
    summary: str
    paper: str
    per: str  # what a weight belongs to: prompt, rollout or reward
    effect: str
    certainty: str
    when: str
    scores: str
    needs: tuple[str, ...]  # inputs, `where` left out
    optional: tuple[str, ...]
    recommended: dict[str, object]  # settings of training: option -> value


def card(method: str | Method) -> Card:
    """The card of a method; a method whose docstring lacks the fields has "-" there.

    >>> card("dr_grpo").recommended, card("dr_grpo").needs
    ({'loss_type': 'dr_grpo'}, ('rewards',))
    """
    function = resolve_method(method)
    text = inspect.getdoc(function) or ""
    return Card(
        name_of(function),
        summary(function) or UNKNOWN,
        **{name.lower(): _field(name, text) for name in FIELDS},
        needs=tuple(name for name in required_inputs(function) if name != "where"),
        optional=optional_inputs(function),
        recommended=recommended_values(function),
    )


def _field(name: str, text: str) -> str:
    match = re.search(rf"^{name}:[ \t]*(\S.*(?:\n[ \t]+\S.*)*)", text, flags=re.MULTILINE)
    return " ".join(match[1].split()) if match else UNKNOWN


def page(name: str, method: str | Method) -> str:
    """A method's page, in Markdown: what it does, when to use it, what it needs, its hyper-parameters.

    >>> page("grpo", "grpo").splitlines()[0]
    '# grpo'
    """
    about, text = card(method), inspect.getdoc(resolve_method(method)) or ""
    described = HYPERPARAMETERS | dict(
        re.findall(r"^    (\w+): ((?:.+\n?)(?:      +.+\n?)*)", text, flags=re.MULTILINE)
    )
    settings = "; ".join(_setting(about.name, option, value) for option, value in about.recommended.items())
    facts = {
        "Paper": about.paper,
        "Weight": about.per if about.per == UNKNOWN else f"per {about.per}",
        "Effect at the defaults": about.effect,
        "Scores": about.scores,
        "Certainty": about.certainty,
        "Options": settings or "the defaults of `calibrant train`",
    }
    section = SECTION.search(text)
    return "\n".join(
        [
            f"# {name}\n",
            text[: section.start() if section else len(text)].rstrip() + "\n",
            f"{SYMBOLS}\n",
            *([] if about.when == UNKNOWN else [f"**When to use it:** {about.when}\n"]),
            "| | |\n|---|---|",
            *(f"| {key} | {_cell(value)} |" for key, value in facts.items() if value != UNKNOWN),
            *([] if about.certainty == UNKNOWN else [f"\n{LEVELS}"]),
            "",
            _inputs(about, described),
            _hyperparameters(method, described),
            f"```\ncalibrant train --method {name}\n```\n",
        ]
    )


def index(methods: Mapping[str, Method] = METHODS) -> str:
    """The table of all methods, in Markdown, each linked to its page."""
    head = "| method | what it does | paper | needs | weight per | effect at the defaults | certainty |"
    lines = ["# Methods\n", head, "|---|---|---|---|---|---|---|"]
    for name, method in methods.items():
        about = card(method)
        needs = ", ".join(about.needs)
        cells = (f"[{name}]({name}.md)", about.summary, about.paper, needs, about.per, about.effect, about.certainty)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join([*lines, f"\n{SYMBOLS}\n\n{LEVELS}\n", FOR_ALL])


def recipes_page() -> str:
    """The recipes of the papers, in Markdown: each option with its source, then what is open."""
    lines = ["# Recipes of the papers\n", RECIPES_INTRO]
    for name, about in RECIPES.items():
        lines += [f"## {name}\n", f"{about.paper}: `calibrant train --recipe {name}`\n"]
        lines += ["| option | value | source | certainty |", "|---|---|---|---|"]
        for option, (value, source, certainty, _) in (about.train | about.analyze).items():
            command = " (of `calibrant analyze`)" if option in about.analyze else ""
            lines.append(f"| `--{option.replace('_', '-')}`{command} | `{value}` | {source} | {certainty} |")
        lines += [f"\nStated, without an option: {text}." for text in about.no_option]
        lines.append(f"\nLeft open: {'; '.join(about.open)}.\n")
    return "\n".join([*lines, LEVELS, ""])


def write_pages(folder: Path, methods: Mapping[str, Method] = METHODS) -> list[Path]:
    """Writes the table and the pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"README.md": index(methods), "recipes.md": recipes_page()} | {
        f"{name}.md": page(name, method) for name, method in methods.items()
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _setting(method: str, option: str, value: object) -> str:
    """An option of the command line, with source and level where `RECOMMENDED` has them."""
    text = f"`--{option.replace('_', '-')} {value}`"
    setting = RECOMMENDED.get(method, {}).get(option)
    return text if setting is None else f"{text} ({setting.source}; {setting.certainty})"


def _inputs(about: Card, described: Mapping[str, str]) -> str:
    lines = ["## Inputs\n", "What each is computed from, and how the method reads it.\n"]
    for name in (*about.needs, *about.optional):
        optional = ", optional" if name in about.optional else ""
        read = f". Here: {' '.join(described[name].split())}" if name in described else ""
        lines.append(f"- `{name}`{optional}: {SOURCES.get(name, 'not supplied by calibrant')}{read}")
    return "\n".join([*lines, ""])


def _hyperparameters(method: str | Method, described: Mapping[str, str]) -> str:
    defaults = hyperparameters(method)
    if not defaults:
        return ""
    lines = ["## Hyper-parameters\n", "| name | default | |", "|---|---|---|"]
    lines += [
        f"| `{k}` | `{v!r}` | {_cell(' '.join(described.get(k, '').split()).rstrip('.'))} |"
        for k, v in defaults.items()
    ]
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
