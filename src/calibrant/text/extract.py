"""From a completion to its answer, and back: where in the completion, and in which of its tokens, the answer stands.

Every function is pure and takes time linear in its text. What is not there is "", the answer of nobody.
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

Span = tuple[int, int]
Decode = Callable[[Sequence[int]], str]

CONTEXT = 8
"""Tokens that are decoded before a token to see what it adds; a character has at most 4 bytes."""

SHORT = 64
"""An answer of up to so many characters is looked for as a whole word first."""

_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_STATED = re.compile(r"\banswer\s*(?:is\b|:)[\s:*]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n")
_DELIMITERS = {"$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]"}
_NUMBER = re.compile(
    r"(?:(?<![\w.)}])[-+\u2212])?"
    r"(?:\\[dtc]?frac\{[-+]?[0-9]+\}\{[-+]?[0-9]+\}"
    r"|(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?(?:/[0-9]+)?"
    r"|(?<![\w.])\.[0-9]+)"
)


def boxed(text: str) -> str:
    r"""The content of the last `\boxed{...}` or `\fbox{...}` whose braces are balanced; of nested ones the innermost.

    `\{` and `\}` are signs, not braces. A box that is never closed, of a completion cut off, does not count.

    >>> boxed(r"so \boxed{1}, no: \boxed{\frac{3}{4}}.")
    '\\frac{3}{4}'
    """
    opened: list[tuple[bool, int]] = []
    content: Span = (0, 0)
    for found in _BRACES.finditer(text):
        sign = found.group()
        if sign[-1] == "{" and sign != r"\{":
            opened.append((len(sign) > 1, found.end()))
        elif sign == "}" and opened:
            is_box, begin = opened.pop()
            if is_box and begin > content[0]:
                content = begin, found.start()
    return text[slice(*content)].strip()


def tagged(text: str, tag: str = "answer") -> str:
    """What stands in the last `<answer>...</answer>`; the whole rest where that tag is not closed.

    >>> tagged("<answer>1</answer> or <answer> 2 </answer>")
    '2'
    """
    opening = _last(re.compile(f"<{re.escape(tag)}>", re.IGNORECASE), text)
    if opening is None:
        return ""
    closing = re.compile(f"</{re.escape(tag)}>", re.IGNORECASE).search(text, opening.end())
    return text[opening.end() : closing.start() if closing else len(text)].strip()


def after_marker(text: str, marker: str = "####") -> str:
    """The rest of the line after the last marker, as GSM8K writes its answers.

    >>> after_marker("9 * 2 = 18\\n#### 18\\nDone.")
    '18'
    """
    _, found, rest = text.rpartition(marker)
    return first_line(rest.partition("\n")[0]) if found else ""


def first_line(text: str) -> str:
    """The first line that is not blank.

    >>> first_line(" Paris\\nQuestion: ...")
    'Paris'
    """
    return text.strip().partition("\n")[0].strip()


def last_number(text: str) -> str:
    """The last number, as it is written: with sign, thousands, decimals, exponent, or as a fraction of two numbers.

    A minus after a digit, a letter or a bracket subtracts: it is not a sign.

    >>> last_number("from 5 to 1,250.50, that is -3/4 of it, not x2")
    '2'
    >>> last_number("5-3 = 2, or -1.5e3.")
    '-1.5e3'
    """
    found = _last(_NUMBER, text)
    return found.group() if found else ""


def stated_answer(text: str) -> str:
    """What follows the last "answer is" or "answer:", up to the end of its formula, its sentence or its line.

    >>> stated_answer("The final answer is $\\\\frac{1}{2}$. I hope it is correct.")
    '\\\\frac{1}{2}'
    >>> stated_answer("**Answer:** 1.5 km. It is far.")
    '1.5 km'
    """
    stated = _last(_STATED, text)
    if stated is None:
        return ""
    rest = text[stated.end() :]
    for opening, closing in _DELIMITERS.items():
        if rest.startswith(opening) and closing in rest[len(opening) :]:
            return rest[len(opening) :].partition(closing)[0].strip()
    end = _SENTENCE_END.search(rest)
    return rest[: end.start() if end else len(rest)].strip(" *\t\r")


def final_answer(text: str) -> str:
    r"""The final answer to a question of mathematics: `boxed`, else `stated_answer`, else `last_number`.

    >>> [final_answer(t) for t in (r"The answer is 3, so \boxed{4}", "the answer is x + 1.", "2 + 3 = 5", "who knows")]
    ['4', 'x + 1', '5', '']
    """
    return boxed(text) or stated_answer(text) or last_number(text)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def answer_span(text: str, answer: str) -> Span | None:
    """Where the answer stands last in a text, runs of white space being equal to each other.

    An answer of up to 64 characters is looked for as a whole word first: the 5 of "so 5, not 15" is the first one.
    Without such a place its last place anywhere counts.

    Args:
        text: a completion.
        answer: what was extracted from it.

    Returns:
        (start, end) in characters, end excluded; None if the answer is empty or not there.

    >>> answer_span("Paris? No, New\\n York.", "New York")
    (11, 20)
    """
    needle = " ".join(answer.split())
    words = [found.span() for found in re.finditer(r"\S+", text)]
    squeezed = " ".join(text[start:end] for start, end in words)
    end = _end_of_last(squeezed, needle)
    if end is None:
        return None
    places = [0, *accumulate(stop - start + 1 for start, stop in words)]
    first, last = (bisect_right(places, i) - 1 for i in (end - len(needle), end - 1))
    return words[first][0] + end - len(needle) - places[first], words[last][0] + end - places[last]


def _end_of_last(text: str, needle: str) -> int | None:
    """The end of the last place of the needle; searched forwards in what is reversed, as only `find` is linear."""
    if not needle:
        return None
    backwards, wanted = text[::-1], needle[::-1]
    last = place = backwards.find(wanted)
    while place >= 0 and len(needle) <= SHORT:
        end = len(text) - place
        if not _glued(text, end - len(needle)) and not _glued(text, end):
            return end
        place = backwards.find(wanted, place + 1)
    return len(text) - last if last >= 0 else None


def _glued(text: str, place: int) -> bool:
    """Whether letters or digits meet at a place."""
    return 0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum()


def token_span(offsets: Sequence[Span], span: Span) -> list[bool]:
    """Which tokens hold a character of a span.

    Args:
        offsets: (start, end) of each token, as of `completion_offsets`; an empty one holds nothing.
        span: (start, end) in characters.

    Returns:
        One bool a token.

    >>> token_span([(0, 2), (2, 2), (2, 5), (5, 6)], (1, 3))
    [True, False, True, False]
    """
    return [max(start, span[0]) < min(end, span[1]) for start, end in offsets]


def token_offsets(pieces: Sequence[str]) -> list[Span]:
    """Where pieces of text stand in the text that they make together.

    >>> token_offsets(["New", " York", "", "."])
    [(0, 3), (3, 8), (8, 8), (8, 9)]
    """
    return list(pairwise(accumulate((len(piece) for piece in pieces), initial=0)))


def completion_offsets(tokenizer: Any, ids: Sequence[int]) -> list[Span]:
    """Where each token stands in `tokenizer.decode(ids, skip_special_tokens=True)`.

    Each token that holds a part of a character (byte-level pieces split them) holds the character. Special tokens,
    and others that add nothing to the text, are empty: (i, i). The pieces of single tokens are taken where they make
    up the text; else what a token adds after a few others; else what it adds after all.

    Args:
        tokenizer: of transformers, or whatever decodes like one.
        ids: T tokens, as they were sampled; the text is not tokenised again, which could give others.

    Returns:
        T intervals (start, end) in characters, end excluded.
    """
    ids = [int(i) for i in ids]

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=True))

    text = decode(ids)
    piece = {i: decode([i]) for i in set(ids)}
    pieces = [piece[i] for i in ids]
    if "".join(pieces) == text:
        return token_offsets(pieces)
    visible = [bool(own) for own in pieces]
    return _by_windows(decode, ids, text, visible) or _by_prefixes(decode, ids, text, visible)


def _by_windows(decode: Decode, ids: Sequence[int], text: str, visible: Sequence[bool]) -> list[Span]:
    """What each token adds to the few before it; nothing if that does not make up the text.

    What a token adds agrees with the text but for the rest of a character that is not finished: the token holds it
    too, unless it is invisible, as special tokens are.
    """
    offsets: list[Span] = []
    place = unfinished = 0
    for k in range(len(ids)):
        window = ids[max(0, k - CONTEXT) : k]
        before = decode(window)
        kept = before[: len(before) - unfinished]
        after = decode([*window, ids[k]])
        if not after.startswith(kept):
            return []
        added = after[len(kept) :]
        agreed = _agreement(added, text[place : place + len(added)])
        unfinished = len(added) - agreed
        offsets.append((place, place + agreed + (unfinished > 0 and visible[k])))
        place += agreed
    return offsets if place == len(text) and not unfinished else []


def _by_prefixes(decode: Decode, ids: Sequence[int], text: str, visible: Sequence[bool]) -> list[Span]:
    """What each token adds to all before it, as far as the decoded prefix agrees with the text."""
    offsets: list[Span] = []
    place = 0
    for k in range(len(ids)):
        prefix = decode(ids[: k + 1])
        agreed = max(place, _agreement(prefix, text))
        unfinished = agreed < min(len(prefix), len(text))
        offsets.append((place, agreed + (unfinished and visible[k])))
        place = agreed
    return offsets


def _agreement(a: str, b: str) -> int:
    """Length of the longest common beginning."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
