"""Keys of answers: equal keys mean equal meaning; the empty key is that of no answer and equals no other."""

import re
import unicodedata
from fractions import Fraction

from calibrant.text.metrics import normalise_answer

LONGEST_NUMBER = 1000  # most characters, and largest power of ten, of a text that is read as a number
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


def number(text: str) -> str:
    r"""The canonical form of a number: an integer, or a fraction in lowest terms; else the normalised text.

    Numbers are integers, decimals, thousands with commas, `1e3`, `1.5 \times 10^{3}`, `a/b`, `\frac{a}{b}`, and mixed
    numbers (`1 4/5`), in math mode or not. Currency and percent signs are dropped as units, as in the normalisation
    of MATH: "50%" is "50", not "0.5", because a question asks for one of the two (c).

    Other text is compared as words (`normalise_answer`) if it has words alone, else character by character without
    white space beside signs: punctuation matters in "x-1".

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
    """The exact value of an answer that `number` reads as a number; None for others and beyond `LONGEST_NUMBER`.

    >>> as_number("-1.25"), as_number("x")
    (Fraction(-5, 4), None)
    """
    if len(text) > LONGEST_NUMBER:
        return None
    match = _SIGNED.fullmatch(_CURRENCY.sub(r"\1", " ".join(_unwrapped(text).split()), count=1))
    size = _size(match[2]) if match else None
    return size if size is None or match is None or match[1] != "-" else -size


def _size(text: str) -> Fraction | None:
    """The absolute value of a number without sign and unit."""
    if match := _SCIENTIFIC.fullmatch(text):
        power = int(match[2] or match[3] or 0)
        return _decimal(match[1]) * Fraction(10) ** power if abs(power) <= LONGEST_NUMBER else None
    if match := _RATIO.fullmatch(text):
        top, bottom = (_decimal(part) for part in match.groups()[1:] if part)
        return top / bottom + int(match[1] or 0) if bottom else None
    return None


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").removesuffix("."))


def _unwrapped(text: str) -> str:
    """A text without math delimiters, LaTeX spacing and typographic variants of signs."""
    text = _NOISE.sub("", unicodedata.normalize("NFC", text).translate(_MARKS).replace("{,}", ",")).strip()
    for _ in range(3):
        match = _WRAPPED.fullmatch(text)
        inner = next((part for part in match.groups() if part is not None), "") if match else text
        if inner == text or "$" in inner.replace(r"\$", ""):
            break
        text = inner.strip()
    return text


def choice(text: str) -> str:
    r"""The letter of a multiple choice, upper-case; else the normalised text.

    A letter counts as a choice alone, in brackets, or before ")", "." or ":" and the option's text.

    >>> [choice(text) for text in ("(B)", "b", "B. Paris", r"\text{(B)}", "The answer is (B)", "a cat")]
    ['B', 'B', 'B', 'B', 'B', 'cat']
    """
    plain = _unwrapped(text.strip(" *"))
    named = _CHOSEN.match(plain)
    for candidate in (plain, plain[named.end() :] if named else plain):
        if match := _CHOICE.match(candidate):
            return match[1].upper()
    return normalise_answer(plain)
