"""A method's card: what its docstring and its signature say of it, for tables and pages."""

import ast
import inspect
import re
from typing import Any, NamedTuple

from calibrant.errors import CalibrantError
from calibrant.methods.calling import name_of, optional_inputs, required_inputs, resolve, summary
from calibrant.methods.outcome import Method

FIELDS = ("Paper", "Per", "Effect", "Certainty", "When", "Settings")
"""The lines of a docstring that a card reads; indented lines continue them."""

UNKNOWN = "-"
"""What a card says where the docstring says nothing."""


class Card(NamedTuple):
    """What there is to know of a method before it is used."""

    name: str
    summary: str
    paper: str
    per: str  # what a weight belongs to: prompt, rollout or reward
    effect: str
    certainty: str
    when: str
    needs: tuple[str, ...]  # inputs, `where` left out
    optional: tuple[str, ...]
    recommended: tuple[tuple[str, Any], ...]  # settings of the trainer


def card(method: str | Method) -> Card:
    """The card of a method; a method whose docstring lacks the fields has "-" there.

    Args:
        method: a name, a dotted path or a function.

    Raises:
        CalibrantError: there is no such method, or its line `Settings:` cannot be read.

    >>> card("dr_grpo").recommended, card("dr_grpo").needs
    ((('loss_type', 'dr_grpo'),), ('rewards',))
    """
    function = resolve(method)
    said = _fields(inspect.getdoc(function) or "")
    return Card(
        name=name_of(function),
        summary=summary(function) or UNKNOWN,
        paper=said["Paper"],
        per=said["Per"],
        effect=said["Effect"],
        certainty=said["Certainty"],
        when=said["When"],
        needs=tuple(name for name in required_inputs(function) if name != "where"),
        optional=optional_inputs(function),
        recommended=_settings(name_of(function), said["Settings"]),
    )


def _fields(text: str) -> dict[str, str]:
    found = {name: re.search(rf"^{name}:[ \t]*(\S.*(?:\n[ \t]+\S.*)*)", text, flags=re.MULTILINE) for name in FIELDS}
    return {name: " ".join(match[1].split()) if match else UNKNOWN for name, match in found.items()}


def _settings(name: str, text: str) -> tuple[tuple[str, Any], ...]:
    """`a=1, b="x"` as pairs; prose without `=` recommends nothing."""
    if "=" not in text:
        return ()
    try:
        tree = ast.parse(f"dict({text.strip('`')})", mode="eval").body
        keywords = tree.keywords if isinstance(tree, ast.Call) and not tree.args else []
        return tuple((str(keyword.arg), ast.literal_eval(keyword.value)) for keyword in keywords)
    except (SyntaxError, ValueError) as error:
        raise CalibrantError(
            f"method '{name}': its docstring has 'Settings: {text}'; that line has to read name=value, name=value"
        ) from error
