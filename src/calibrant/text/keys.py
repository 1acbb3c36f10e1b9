"""From an answer to its key: equal keys mean one meaning. The empty key is no answer, and means nothing shared."""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from calibrant.text.metrics import normalise_answer

if TYPE_CHECKING:
    pass

LONGEST_NUMBER = 1000
"""Characters, and powers of ten, up to which a text is read as a number."""

_MARKS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*"})
_NOISE = re.compile(r"\\[!,;: ]|\\left|\\right|\\displaystyle")
_WRAPPED = re.compile(r"\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", re.DOTALL)
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_POWER = r"[eE]([-+]?[0-9]+)|\s*(?:\*|\\times|\\cdot)\s*10\s*\^\s*\{?\s*([-+]?[0-9]+)\s*\}?"
_CURRENCY = re.compile(r"([-+]?)\s*\\?[$\u20ac\u00a3\u00a5]")
_SIGNED = re.compile(r"([-+]?)\s*(.*?)\s*(?:\\?%)?\s*\.?", re.DOTALL)
_SCIENTIFIC = re.compile(rf"({_DECIMAL})(?:{_POWER})?")
_RATIO = re.compile(
    r"(?:([0-9]+)\s*(?=\\|(?<=\s)[0-9]))?"
    rf"(?:({_DECIMAL})/({_DECIMAL})|\\[dtc]?frac\s*(?:\{{({_DECIMAL})\}}|([0-9]))\s*(?:\{{({_DECIMAL})\}}|([0-9]+)))"
)
_CHOICE = re.compile(r"[(\[]?\s*([A-Za-z])\s*(?:$|[)\]]|[.:](?:\s|$))")
_CHOSEN = re.compile(r"(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|option|choice)\s*(?:is\b|:)?\s*", re.IGNORECASE)
_WORDS = re.compile(r"[^\W\d_]+(?:[\s.,;:!?'\"\u2019-]+[^\W\d_]+)*[\s.,;:!?'\"\u2019]*")
_SPACE = re.compile(r" (?!\w)|(?<!\w) ")
_SIGN = re.compile(r"(?P<dress>\\(?:text(?:rm|bf)?|mathrm|mbox|rm)(?![a-zA-Z])|\\[ ,;:!]|[\s${}~\\])|.")


def number(text: str) -> str:
    r"""The canonical form of a number: an integer, or a fraction in lowest terms; else the text without disguise.

    Read as numbers are integers, decimals, thousands with commas, `1e3`, `1.5 \times 10^{3}`, `a/b`, `\frac{a}{b}`,
    and mixed numbers (`1 4/5`), in mathematics or not. Currency signs and the percent sign are units and are dropped,
    as the normalisation of MATH drops them: "50%" is "50", not "0.5", for a question asks for one of the two (c).

    What is no number is compared as words (`normalise_answer`) where it is made of words alone, else character by
    character, but for white space beside a sign: punctuation carries meaning in "x-1".

    Args:
        text: an answer.

    Returns:
        A key, "" for an empty answer.

    >>> [number(text) for text in ("1,000", "1000.0", "1e3", "$1000", "50%", "1/2", "0.5", r"\frac{2}{4}")]
    ['1000', '1000', '1000', '1000', '50', '1/2', '1/2', '1/2']
    >>> [number(text) for text in ("The Euro.", "x - 1", "$x-1$")]
    ['euro', 'x-1', 'x-1']
    """
    value = as_number(text)
    if value is not None:
        return str(value)
    plain = _unwrapped(text)
    if _WORDS.fullmatch(plain):
        return normalise_answer(plain) or plain.lower()
    return _SPACE.sub("", " ".join(plain.split())).rstrip(".")


def as_number(text: str) -> Fraction | None:
    """The value of an answer that `number` reads as one, exactly; None for others, and for those of absurd size.

    >>> as_number("-1.25"), as_number("x")
    (Fraction(-5, 4), None)
    """
    if len(text) > LONGEST_NUMBER:
        return None
    found = _SIGNED.fullmatch(_CURRENCY.sub(r"\1", " ".join(_unwrapped(text).split()), count=1))
    size = _size(found[2]) if found else None
    return size if size is None or found is None or found[1] != "-" else -size


def _size(text: str) -> Fraction | None:
    """The absolute value of a number without sign and unit."""
    if found := _SCIENTIFIC.fullmatch(text):
        power = int(found[2] or found[3] or 0)
        return _decimal(found[1]) * Fraction(10) ** power if abs(power) <= LONGEST_NUMBER else None
    if found := _RATIO.fullmatch(text):
        top, bottom = (_decimal(part) for part in found.groups()[1:] if part)
        return top / bottom + int(found[1] or 0) if bottom else None
    return None


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").removesuffix("."))


def _unwrapped(text: str) -> str:
    """A text without the signs of mathematics and of typography around it."""
    text = _NOISE.sub("", unicodedata.normalize("NFC", text).translate(_MARKS).replace("{,}", ",")).strip()
    for _ in range(3):
        found = _WRAPPED.fullmatch(text)
        inner = next((part for part in found.groups() if part is not None), "") if found else text
        if inner == text or "$" in inner.replace(r"\$", ""):
            break
        text = inner.strip()
    return text


def choice(text: str) -> str:
    r"""The letter of a multiple choice, upper-case; else the normalised text.

    A letter is a choice where it stands alone, in brackets, or before ")", "." or ":" and the option's text.

    Args:
        text: an answer.

    Returns:
        A key, "" for an empty answer.

    >>> [choice(text) for text in ("(B)", "b", "B. Paris", r"\text{(B)}", "The answer is (B)", "a cat")]
    ['B', 'B', 'B', 'B', 'B', 'cat']
    """
    plain = _unwrapped(text.strip(" *"))
    named = _CHOSEN.match(plain)
    for candidate in (plain, plain[named.end() :] if named else plain):
        found = _CHOICE.match(candidate)
        if found:
            return found[1].upper()
    return normalise_answer(plain)


def without_unit(text: str, unit: str) -> str:
    r"""An answer without the unit at its end, which OlympiadBench names apart from its answers.

    `\text{...}`, braces, dollar signs and white space do not matter.

    >>> [without_unit(text, "$cm^2$") for text in ("166 cm^2", r"166\text{ cm}^2", "166")]
    ['166', '166', '166']
    """
    signs = list(_SIGN.finditer(text))
    bare = [i for i, sign in enumerate(signs) if sign["dress"] is None]
    wanted = [sign.group() for sign in _SIGN.finditer(unit) if sign["dress"] is None]
    first = bare[len(bare) - len(wanted) :]
    if not 0 < len(wanted) < len(bare) or [signs[i].group() for i in first] != wanted:
        return text
    end = first[0]
    while signs[end - 1]["dress"] not in (None, "}"):
        end -= 1
    rest = text[: signs[end].start()].strip()
    opened = rest.count("$") - rest.count(r"\$")
    return f"{rest}$" if opened % 2 else rest


KEYS: dict[str, Callable[[str], str]] = {
    "normalised": normalise_answer,
    "number": number,
    "choice": choice,
}
"""The keys with a name."""
