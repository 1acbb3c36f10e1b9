"""Answer metrics of question answering: F1 and exact match with the normalisation of SQuAD."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from calibrant.errors import CalibrantError

Answer = TypeVar("Answer")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower-cases, drops ASCII punctuation and English articles, and squeezes white space.

    Reference: the official evaluation script of SQuAD 1.1 (Rajpurkar et al., 2016).

    >>> normalise_answer("The  Eiffel Tower!")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def reference_list(references: str | Sequence[str]) -> list[str]:
    """The references of one answer as a list; a text is a list of one.

    >>> reference_list("Paris"), reference_list(("Paris", "Lutetia"))
    (['Paris'], ['Paris', 'Lutetia'])
    """
    return [references] if isinstance(references, str) else list(references)


def answer_pairs(
    answers: Sequence[Answer], references: Sequence[str | Sequence[str]]
) -> list[tuple[Answer, list[str]]]:
    """B answers, or groups of answers, each with the list of its references.

    >>> answer_pairs(["Paris", "Rome"], "Paris")
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: expected one list of references per answer, 2 in all, got a text
    """
    if isinstance(references, str) or len(answers) != len(references):
        got = "a text" if isinstance(references, str) else len(references)
        raise CalibrantError(f"expected one list of references per answer, {len(answers)} in all, got {got}")
    return [(answer, reference_list(gold)) for answer, gold in zip(answers, references, strict=True)]


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall in [0, 1], the best over the references; 0 without references.

    `F1 = 2 P R / (P + R)` on the bags of normalised tokens; 1 for two empty bags, 0 for one.

    >>> token_f1("Paris and Lyon", ["Paris, Lyon, Nice"])
    0.6666666666666666
    """
    predicted = normalise_answer(answer).split()
    return max((_f1(predicted, normalise_answer(gold).split()) for gold in reference_list(references)), default=0.0)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the normalised answer equals a normalised reference, else 0.

    >>> exact_match("the Euro.", ["Euro"])
    1.0
    """
    return float(normalise_answer(answer) in map(normalise_answer, reference_list(references)))


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold))
