"""Reads the cells of the user's data: texts, answers, options and turns.

A reader takes a cell, and whether its file knows texts alone (CSV), where lists are JSON. It returns None, or an empty
list, for an empty cell, and raises ValueError with the rest of a sentence for a cell that it cannot read.
"""

import json
import math
from numbers import Number
from typing import Any, NamedTuple

from calibrant.text.extract import after_marker, boxed


def number_text(value: object) -> str:
    r"""A value as text; whole numbers have no decimals, None is "".

    >>> number_text(27.0), number_text(0.5), number_text("27.0"), number_text(None)
    ('27', '0.5', '27.0', '')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def text_of(value: object) -> str | None:
    """A text or a number as text; None for None and NaN.

    >>> text_of(0), text_of(3.0), text_of("x"), text_of(float("nan"))
    ('0', '3', 'x', None)
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, (str, Number)):
        raise TypeError(value)
    return number_text(value).encode("utf-8", "replace").decode()


def texts_of(value: object) -> list[str] | None:
    """A list of texts or numbers as texts, a single one as a list of one; None for None and NaN.

    >>> texts_of("Norway"), texts_of([1, 2.5, None]), texts_of(None)
    (['Norway'], ['1', '2.5'], None)
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (list, tuple)):
        text = text_of(value)
        return None if text is None else [text]
    return [text for text in map(text_of, value) if text is not None]


def text(value: object, textual: bool) -> str | None:
    """A text; None where it is empty."""
    found = _attempt(text_of, value, "it has to be a text")
    return found.strip() or None if found else None


def texts(value: object, textual: bool) -> list[str]:
    """A text or a list of texts, `{"text": [...]}` included (SQuAD), without empty ones."""
    value = _listed(value, textual)
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    found = _attempt(texts_of, value, "it has to be a text or a list of texts")
    return [text.strip() for text in found or [] if text.strip()]


def paragraphs(value: object, textual: bool) -> str | None:
    """A text, or the texts of a list, separated by blank lines; None where it is empty."""
    return "\n\n".join(texts(value, textual)) or None


def given(value: object, textual: bool) -> object:
    """The cell as it is; None where it is empty."""
    empty = value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value)
    return None if empty else value


def final_answers(value: object, textual: bool) -> list[str]:
    r"""Final answers: what `\boxed{...}` or the line after `####` holds of a solution, else the text.

    >>> final_answers(["so 9 * 2 = 18\n#### 18", r"It is \boxed{x}.", "1/2"], False)
    ['18', 'x', '1/2']
    """
    given = texts(value, textual)
    return [after_marker(text).replace(",", "") or boxed(text) or text for text in given]


class ChoiceOptions(NamedTuple):
    """The options of a multiple choice."""

    texts: list[str]
    labels: list[str]  # as the data name them; letters by default


def options(value: object, textual: bool) -> ChoiceOptions | None:
    """A list of at least two texts, or `{"text": [...], "label": [...]}` (ARC); None where it is empty."""
    value = _listed(value, textual)
    labels = value.get("label") if isinstance(value, dict) else None
    found = [str(option).strip() for option in _attempt(texts_of, _inner(value), "it has to be a list of texts") or []]
    if not found:
        return None
    if not 2 <= len(found) <= 26:
        raise ValueError(f"holds {len(found)} options; it has to be a list of 2 to 26")
    names = texts_of(labels) if labels is not None else letters(len(found))
    if names is None or len(names) != len(found):
        raise ValueError("has labels and texts of different numbers")
    return ChoiceOptions(found, names)


def letters(count: int) -> list[str]:
    """The first capital letters.

    >>> letters(3)
    ['A', 'B', 'C']
    """
    return [chr(ord("A") + i) for i in range(count)]


def chosen(value: object, given: ChoiceOptions) -> str:
    """The letter of the right option, which a cell names by its text, label or letter, or by its number from 0.

    >>> options = ChoiceOptions(["Paris", "Nice"], ["A", "B"])
    >>> chosen("Nice", options), chosen(0, options)
    ('B', 'A')
    """
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    name, names = (_attempt(text_of, value, "it has to name one option") or "").strip(), letters(len(given.texts))
    numbers = [str(i) for i in range(len(names))]
    by_number = [numbers] if isinstance(value, (int, float)) and given.labels == names else []
    for known in (*by_number, given.texts, given.labels, names, [x.lower() for x in names], numbers):
        if name in known:
            return names[known.index(name)]
    raise ValueError(
        f"holds {name!r:.40}, which is none of the {len(names)} options; it has to be the text or letter of one "
        f"({names[0]} to {names[-1]}), or its number, counted from 0"
    )


def turns(value: object, textual: bool) -> str | list[dict[str, str]] | None:
    """A prompt: a text, or turns `{"role": ..., "content": ...}` of which the last is not the assistant's."""
    value = _listed(value, textual)
    if not isinstance(value, list):
        return text(value, textual)
    if not all(isinstance(t, dict) and isinstance(t.get("content"), str) and t.get("role") for t in value):
        raise ValueError("holds a list that is no conversation; it has to be turns with role and content, both texts")
    if value and value[-1]["role"] == "assistant":
        raise ValueError("ends with a turn of the assistant, which the policy is to write; leave that turn out")
    return [{"role": str(turn["role"]), "content": turn["content"]} for turn in value] or None


def _inner(value: Any) -> object:
    return value.get("text") if isinstance(value, dict) else value


def _listed(value: object, textual: bool) -> Any:
    """The list or object that a text of a CSV file writes as JSON, else the value.

    Lists of texts or objects alone, since `[0, 1]` is an answer in mathematics.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not textual or not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        read = json.loads(value)
    except ValueError:
        if value.lstrip()[1:].lstrip().startswith(("'", '"', "{")):
            raise ValueError('looks like a list and is no JSON; write it as ["a", "b"]') from None
        return value
    return read if isinstance(read, dict) or all(isinstance(x, (str, dict)) for x in read) else value


def _attempt(read: Any, value: object, wanted: str) -> Any:
    try:
        return read(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"holds {_kind(value)}; {wanted}") from None


def _kind(value: object) -> str:
    nested = isinstance(value, (list, tuple)) and any(isinstance(x, (list, tuple, dict)) for x in value)
    return "a nested list" if nested else f"a {type(value).__name__} ({value!r:.40})"
