"""Extension of griffe for the Python reference: doctests become code blocks, comments of fields their descriptions."""

import ast
import re
from dataclasses import fields
from typing import Any

import griffe

from calibrant.options import TrainerOptions, declared

DOCTEST = re.compile(r"\n\n((?:>>> .*(?:\n.+)*(?:\n\n(?=>>> ))?)+)\s*$")
COMMENT = re.compile(r"  # (.+)$")
OPTIONS, DEFAULTS = declared(TrainerOptions), {field.name: field.default for field in fields(TrainerOptions)}


class ReadableDocstrings(griffe.Extension):
    """Reads what the Google style of griffe leaves out."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """A doctest at the end of a docstring is a code block, not three nested quotations."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"\n\n```python\n\1\n```", obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """A comment behind a field is its description, and so is the help of an option of the configuration."""
        if attr.docstring or not (attr.parent and attr.parent.is_class):
            return
        if text := _option_help(str(attr.value)):
            attr.value = None  # a call that says nothing to a reader
        elif comment := COMMENT.search(_line(attr)):
            text = comment[1]
        if text:
            attr.docstring = griffe.Docstring(f"{text[0].upper()}{text[1:]}.", parent=attr)


def _option_help(value: str) -> str:
    """The help text in `_option("NAME", ...)` or `_own(DEFAULT, "HELP")` of `calibrant.trl.config`; else ""."""
    if not value.startswith(("_option(", "_own(")):
        return ""
    call = ast.parse(value, mode="eval").body
    assert isinstance(call, ast.Call)
    if value.startswith("_own("):
        return str(ast.literal_eval(call.args[1]))
    name = ast.literal_eval(call.args[0])
    default = ast.unparse(call.args[1]) if len(call.args) > 1 else OPTIONS[name].shown or repr(DEFAULTS[name])
    return f"{OPTIONS[name].help}; default: {default}"


def _line(attr: griffe.Attribute) -> str:
    return attr.lines_collection[attr.filepath][attr.lineno - 1] if attr.lineno else ""
