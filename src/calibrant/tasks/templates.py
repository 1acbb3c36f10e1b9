"""Prompt templates: a text with `{column}` placeholders, filled in by one substitution. Nothing in it is evaluated."""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from calibrant.errors import CalibrantError, nearest

_PLACEHOLDER = re.compile(r"\{\{([^\W\d][\w .:-]*)\}\}|\{([^\W\d][\w .:-]*)\}")


class Template(NamedTuple):
    """A prompt template."""

    text: str
    origin: str  # its file

    def names(self) -> list[str]:
        """The names in its placeholders, each once."""
        return list(dict.fromkeys(match[2] for match in _PLACEHOLDER.finditer(self.text) if match[2]))

    def fill(self, value_of: Callable[[str], str]) -> str:
        r"""The text with the values of its placeholders; `{{name}}` becomes `{name}`, other braces stay.

        >>> print(Template(r"{question} Use \boxed{\frac{1}{2}} and {{x}}.", "f").fill(lambda name: f"<{name}>"))
        <question> Use \boxed{\frac{1}{2}} and {x}.
        """
        return _PLACEHOLDER.sub(lambda m: value_of(m[2]) if m[2] else m[0][1:-1], self.text)


def read_template(path: str) -> Template:
    """The template of a file; a final line break does not count."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            template = Template(file.read().removesuffix("\n"), path)
    except (OSError, ValueError) as error:
        raise CalibrantError(
            f"--prompt-template '{path}' cannot be read ({error}); give a text file in UTF-8"
        ) from None
    if not template.names():
        raise CalibrantError(f"--prompt-template '{path}' has no placeholder, such as {{question}}; add one")
    return template


def check_template(template: Template, known: Collection[str]) -> None:
    """Raises CalibrantError if a placeholder names no column."""
    for name in template.names():
        if name not in known:
            raise CalibrantError(
                f"'{template.origin}' has the placeholder {{{name}}}, which is no column{nearest(name, known)}; there "
                f"are {', '.join(known)}; write {{{{{name}}}}} for these characters themselves"
            )
