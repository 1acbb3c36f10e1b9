"""Extension of griffe for the Python reference: doctests become code blocks, comments of fields their descriptions."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"\n\n((?:>>> .*(?:\n.+)*(?:\n\n(?=>>> ))?)+)\s*$")
FIELD = re.compile(r"  # (.+)$")


class ReadableDocstrings(griffe.Extension):
    """Reads what the Google style of griffe leaves out."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """A doctest at the end of a docstring is a code block, not three nested quotations."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"\n\n```python\n\1\n```", obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """A comment behind a field is its description."""
        if not attr.docstring and attr.parent and attr.parent.is_class and (match := FIELD.search(_line(attr))):
            attr.docstring = griffe.Docstring(match[1], parent=attr)


def _line(attr: griffe.Attribute) -> str:
    return attr.lines_collection[attr.filepath][attr.lineno - 1] if attr.lineno else ""
