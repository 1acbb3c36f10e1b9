"""Extracts answers from completions, and finds the characters and tokens of an answer in its completion.

Every function is pure and linear in the length of its text. Extractors return "" when nothing is found.
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

Span = tuple[int, int]
Decode = Callable[[Sequence[int]], str]


class Decoder(Protocol):
    """A tokenizer of transformers, or an object that decodes like one."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        """The text of token ids."""


CONTEXT = 8  # tokens decoded before a token to see what it adds; a character has at most 4 bytes
SHORT = 64  # longest answer, in characters, that is searched for as a whole word first
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
    r"""The content of the last `\boxed{...}` or `\fbox{...}` with balanced braces; the innermost of nested ones.

    `\{` and `\}` are not braces; backslashes may be doubled, as in JSON. A box that is never closed, as in a truncated
    completion, is skipped.

    >>> boxed(r"so \boxed{1}, no: \boxed{\frac{3}{4}}.")
    '\\frac{3}{4}'
    """
    opened: list[tuple[bool, int]] = []
    content: Span = (0, 0)
    for match in _BRACES.finditer(text):
        brace = match.group()
        if brace[-1] == "{" and brace != r"\{":
            opened.append((len(brace) > 1, match.end()))
        elif brace == "}" and opened:
            is_box, begin = opened.pop()
            if is_box and begin > content[0]:  # not the box around one that was found
                content = begin, match.start()
    return text[slice(*content)].strip()


def tagged(text: str, tag: str = "answer") -> str:
    """The content of the last `<answer>...</answer>`; the rest of the text if that tag is not closed.

    >>> tagged("<answer>1</answer> or <answer> 2 </answer>")
    '2'
    """
    opening = _last(re.compile(f"<{re.escape(tag)}>", re.IGNORECASE), text)
    if opening is None:
        return ""
    closing = re.compile(f"</{re.escape(tag)}>", re.IGNORECASE).search(text, opening.end())
    return text[opening.end() : closing.start() if closing else len(text)].strip()


def after_marker(text: str, marker: str = "####") -> str:
    """The rest of the line after the last marker, the format of GSM8K.

    >>> after_marker("9 * 2 = 18\\n#### 18\\nDone.")
    '18'
    """
    _, separator, rest = text.rpartition(marker)
    return first_line(rest.partition("\n")[0]) if separator else ""


def first_line(text: str) -> str:
    """The first line that is not blank.

    >>> first_line(" Paris\\nQuestion: ...")
    'Paris'
    """
    return text.strip().partition("\n")[0].strip()


def last_number(text: str) -> str:
    r"""The last number as written: with sign, thousands separators, decimals, exponent, or as a fraction.

    A minus after a letter, a digit or a closing bracket is a subtraction, not a sign.

    >>> [last_number(text) for text in ("$1,250.50", "x = -1.5e3.", "-3/4 of it", r"\frac{3}{4}", "5-3", "x2")]
    ['1,250.50', '-1.5e3', '-3/4', '\\frac{3}{4}', '3', '2']
    """
    match = _last(_NUMBER, text)
    return match.group() if match else ""


def stated_answer(text: str) -> str:
    """The text after the last "answer is" or "answer:", up to the end of its formula, sentence or line.

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
    r"""The final answer of a solution: `boxed`, else `stated_answer`, else `last_number`.

    >>> [final_answer(t) for t in (r"The answer is 3, so \boxed{4}", "the answer is x + 1.", "2 + 3 = 5", "who knows")]
    ['4', 'x + 1', '5', '']
    """
    return boxed(text) or stated_answer(text) or last_number(text)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def answer_span(text: str, answer: str) -> Span | None:
    """Characters `(start, end)` of the last occurrence of an answer in its completion; runs of white space are equal.

    An answer of up to 64 characters is searched for as a whole word first (in "so 5, not 15" it is the first 5), then
    anywhere. None if the answer is empty or does not occur.

    >>> answer_span("Paris? No, New\\n York.", "New York")
    (11, 20)
    """
    needle = " ".join(answer.split())
    words = [match.span() for match in re.finditer(r"\S+", text)]
    squeezed = " ".join(text[start:end] for start, end in words)
    end = _end_of_last(squeezed, needle)
    if end is None:
        return None
    starts = [0, *accumulate(stop - start + 1 for start, stop in words)]
    first, last = (bisect_right(starts, i) - 1 for i in (end - len(needle), end - 1))
    return words[first][0] + end - len(needle) - starts[first], words[last][0] + end - starts[last]


def _end_of_last(text: str, needle: str) -> int | None:
    """The end of the last occurrence; searched forwards in reversed texts, because only `find` is linear."""
    if not needle:
        return None
    backwards, reversed_needle = text[::-1], needle[::-1]
    last = index = backwards.find(reversed_needle)
    while index >= 0 and len(needle) <= SHORT:
        end = len(text) - index
        if not _inside_word(text, end - len(needle)) and not _inside_word(text, end):
            return end
        index = backwards.find(reversed_needle, index + 1)
    return len(text) - last if last >= 0 else None


def _inside_word(text: str, index: int) -> bool:
    return 0 < index < len(text) and text[index - 1].isalnum() and text[index].isalnum()


def token_span(offsets: Sequence[Span], span: Span) -> list[bool]:
    """One bool per token: whether its offsets, from `completion_offsets`, overlap a span of characters.

    >>> token_span([(0, 2), (2, 2), (2, 5), (5, 6)], (1, 3))
    [True, False, True, False]
    """
    return [max(start, span[0]) < min(end, span[1]) for start, end in offsets]


def token_offsets(pieces: Sequence[str]) -> list[Span]:
    """Offsets of pieces of text in their concatenation.

    >>> token_offsets(["New", " York", "", "."])
    [(0, 3), (3, 8), (8, 8), (8, 9)]
    """
    return list(pairwise(accumulate((len(piece) for piece in pieces), initial=0)))


def completion_offsets(tokenizer: Decoder, ids: Sequence[int]) -> list[Span]:
    """Offsets `(start, end)` of T tokens in the characters of `tokenizer.decode(ids, skip_special_tokens=True)`.

    A token with part of a character (byte-level pieces split them) covers the character. Special tokens, and others
    that add nothing to the text, are empty: (i, i). The text is not tokenised again, which could give other tokens:
    single tokens are decoded if their pieces add up to the text, else windows of a few, else prefixes.
    """
    ids = [int(i) for i in ids]

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=True))

    text = decode(ids)
    piece = {i: decode([i]) for i in set(ids)}
    pieces = [piece[i] for i in ids]
    if "".join(pieces) == text:
        return token_offsets(pieces)
    visible = [bool(text) for text in pieces]
    return _by_windows(decode, ids, text, visible) or _by_prefixes(decode, ids, text, visible)


def _by_windows(decode: Decode, ids: Sequence[int], text: str, visible: Sequence[bool]) -> list[Span]:
    """Offsets from what each token adds to the few before it; [] if that does not add up to the text.

    The addition agrees with the text except for an unfinished character, which the token covers too unless it is
    invisible, as special tokens are.
    """
    offsets: list[Span] = []
    position = unfinished = 0
    for k in range(len(ids)):
        window = ids[max(0, k - CONTEXT) : k]
        before = decode(window)
        kept = before[: len(before) - unfinished]
        after = decode([*window, ids[k]])
        if not after.startswith(kept):
            return []
        added = after[len(kept) :]
        agreed = _agreement(added, text[position : position + len(added)])
        unfinished = len(added) - agreed
        offsets.append((position, position + agreed + (unfinished > 0 and visible[k])))
        position += agreed
    return offsets if position == len(text) and not unfinished else []


def _by_prefixes(decode: Decode, ids: Sequence[int], text: str, visible: Sequence[bool]) -> list[Span]:
    """Offsets from what each token adds to all before it, as far as the decoded prefix agrees with the text."""
    offsets: list[Span] = []
    position = 0
    for k in range(len(ids)):
        prefix = decode(ids[: k + 1])
        agreed = max(position, _agreement(prefix, text))
        unfinished = agreed < min(len(prefix), len(text))
        offsets.append((position, agreed + (unfinished and visible[k])))
        position = agreed
    return offsets


def _agreement(a: str, b: str) -> int:
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
