"""From an answer to its key: equal keys mean one meaning. The empty key is no answer, and means nothing shared."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from torch import Tensor

from calibrant.clustering import greedy_clusters
from calibrant.errors import CalibrantError
from calibrant.text.metrics import normalise_answer

if TYPE_CHECKING:
    from calibrant.text.verify import Verifier

LONGEST_NUMBER = 1000
"""Characters, and digits of an exponent's power of ten, up to which a text is read as a number."""

_MARKS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*"})
_NOISE = re.compile(r"\\[!,;: ]|\\left|\\right|\\displaystyle")
_WRAPPED = re.compile(r"\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", re.DOTALL)
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_FRACTION = r"[0-9]+/[0-9]+|\\[dtc]?frac(?:\{[0-9]+\}\{[0-9]+\}|[0-9]{2}|[0-9]\{[0-9]+\}|\{[0-9]+\}[0-9])"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:\\?[$\u20ac\u00a3\u00a5])?\s*(?P<minus>-?)\s*"
    rf"(?:(?P<whole>[0-9]+)\s*(?P<part>\\[dtc]?frac\{{[0-9]+\}}\{{[0-9]+\}}|(?<=\s)[0-9]+/[0-9]+)"
    rf"|(?P<fraction>{_FRACTION})"
    rf"|(?P<decimal>{_DECIMAL})(?:[eE](?P<e>[-+]?[0-9]+)"
    r"|\s*(?:\*|\\times|\\cdot)\s*10\s*\^\s*(?:\{\s*(?P<power>[-+]?[0-9]+)\s*\}|(?P<digits>-?[0-9]+)))?)"
    r"\s*\\?%?\s*\.?"
)
_CHOICE = re.compile(r"[(\[]?\s*([A-Za-z])\s*(?:$|[)\]]|[.:](?:\s|$))")
_CHOSEN = re.compile(r"(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|option|choice)\s*(?:is\b|:)?\s*", re.IGNORECASE)
_WORDS = re.compile(r"[^\W\d_]+(?:[\s.,;:!?'\"\u2019-]+[^\W\d_]+)*[\s.,;:!?'\"\u2019]*")
_UNIT_NOISE = " \t\n{}$~"
_UNIT_COMMANDS = (r"\text", r"\mathrm", r"\mbox", r"\textrm", r"\rm", r"\ ", r"\,", r"\;", r"\:", "\\")


def number(text: str) -> str:
    r"""The canonical form of a number: an integer, or a fraction in lowest terms; else the text without disguise.

    Read as numbers are integers, decimals, thousands with commas, `1e3`, `1.5 \times 10^{3}`, `a/b`, `\frac{a}{b}`,
    and mixed numbers (`1 4/5`), in mathematics or not. Currency signs and the percent sign are units and are dropped,
    as the normalisation of MATH drops them: "50%" is "50", not "0.5", for a question asks for one of the two (c).

    What is no number is compared as words (`normalise_answer`) where it is made of words alone, else character by
    character without white space: punctuation carries meaning in "x-1".

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
    return "".join(plain.split()).removesuffix(".")


def as_number(text: str) -> Fraction | None:
    """The value of an answer that `number` reads as one, exactly; None for others, and for those of absurd size.

    >>> as_number("-1.25"), as_number("x")
    (Fraction(-5, 4), None)
    """
    if len(text) > LONGEST_NUMBER:
        return None
    found = _NUMBER.fullmatch(_unwrapped(text))
    if found is None or (found["sign"] and found["minus"]):
        return None
    size = _size(found)
    return -size if size is not None and "-" in (found["sign"], found["minus"]) else size


def _size(found: re.Match[str]) -> Fraction | None:
    """The absolute value of a number that was read."""
    power = int(found["e"] or found["power"] or found["digits"] or 0)
    if abs(power) > LONGEST_NUMBER:
        return None
    if found["decimal"]:
        return Fraction(found["decimal"].replace(",", "").rstrip(".")) * Fraction(10) ** power
    top, bottom = _parts(found["fraction"] or found["part"])
    return Fraction(top, bottom) + int(found["whole"] or 0) if bottom else None


def _parts(fraction: str) -> tuple[int, int]:
    """Numerator and denominator; `\\frac43` has one digit each."""
    parts = re.findall(r"[0-9]+", fraction)
    if len(parts) == 1:
        parts = [parts[0][0], parts[0][1:]]
    return int(parts[0]), int(parts[1])


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
    plain = _unwrapped(text)
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
    rest = text.rstrip(_UNIT_NOISE)
    for sign in reversed([sign for sign in unit if sign not in _UNIT_NOISE]):
        if not rest.endswith(sign):
            return text
        rest = _without_noise(rest[: -len(sign)])
    opened = "$" if rest.count("$") - 2 * rest.count(r"\$") == 1 else ""
    return (rest + opened).strip() or text


def _without_noise(text: str) -> str:
    """A text without what may stand between the signs of a unit."""
    text = text.rstrip(_UNIT_NOISE)
    command = next((command for command in _UNIT_COMMANDS if text.endswith(command)), "")
    return text.removesuffix(command).rstrip(_UNIT_NOISE)


KEYS: dict[str, Callable[[str], str]] = {
    "normalised": normalise_answer,
    "number": number,
    "choice": choice,
}
"""The keys with a name."""


def symbolic_clusters(groups: Sequence[Sequence[str]], verifier: "Verifier") -> Tensor:
    """Clusters of answers that are mathematically equal.

    The first answer of a group opens a cluster; each later one joins the first cluster whose first member it equals,
    else opens one. Answers with equal `number` keys are equal; the verifier is asked for the rest only, for the
    answers of one step of all groups at once. A pair that it cannot score is not equal.

    Args:
        groups: N lists of G answers; an empty one is a cluster of its own.
        verifier: decides pairs (answer, first member of a cluster).

    Returns:
        `[N, G]`, int64, 0, 1, ... in order of first appearance.

    Raises:
        CalibrantError: groups differ in length, or are no lists of answers.

    Reference: EMPO's code, the branch that assigns to the first match (a); keys before the verifier are ours (c).
    """
    if any(isinstance(group, str) for group in groups):
        raise CalibrantError("symbolic_clusters: expected N lists of G answers, got a flat list; split it into groups")
    keys = [[number(answer) for answer in group] for group in groups]
    written = [dict(reversed(list(zip(own, group, strict=True)))) for own, group in zip(keys, groups, strict=True)]
    queues = [[key for key in dict.fromkeys(own) if key] for own in keys]
    seeds: list[dict[str, str]] = [{} for _ in groups]
    for step in range(max(map(len, queues), default=0)):
        active = [(n, queue[step]) for n, queue in enumerate(queues) if step < len(queue)]
        asked = [(n, key, seed) for n, key in active for seed in dict.fromkeys(seeds[n].values())]
        answers = verifier.verify([(written[n][key], written[n][seed]) for n, key, seed in asked])
        for (n, key, seed), equal in zip(asked, answers, strict=True):
            if equal:
                seeds[n].setdefault(key, seed)
        for n, key in active:
            seeds[n].setdefault(key, key)
    return greedy_clusters([[seeds[n].get(key, "") for key in own] for n, own in enumerate(keys)])
