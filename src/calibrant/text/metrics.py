"""Answer metrics of question answering: F1 and exact match with the normalisation of SQuAD, and BLEU."""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from calibrant.errors import CalibrantError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower-cases, drops ASCII punctuation and English articles, and squeezes white space.

    Reference: the official evaluation script of SQuAD 1.1 (Rajpurkar et al., 2016).

    >>> normalise_answer("The  Eiffel Tower!")
    'eiffel tower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall, the best over the references.

    `F1 = 2 P R / (P + R)` on the bags of normalised tokens; two empty bags agree (1), one empty bag does not (0).

    Returns:
        A number in [0, 1]; 0 without references.

    >>> token_f1("Paris and Lyon", ["Paris, Lyon, Nice"])
    0.6666666666666666
    """
    return max((_f1(normalise_answer(answer).split(), normalise_answer(r).split()) for r in references), default=0.0)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the normalised answer equals a normalised reference, else 0.

    >>> exact_match("the Euro.", ["Euro"])
    1.0
    """
    return float(any(normalise_answer(answer) == normalise_answer(r) for r in references))


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of all predictions as one corpus: n-gram counts are summed before they are divided.

    Args:
        predictions: one a question.
        references: the right answers of each, at least one, as many as there are.

    Returns:
        A number in [0, 100]; NaN without predictions.

    Raises:
        CalibrantError: lengths differ, a prediction has no reference, or sacrebleu is not installed.

    Reference: sacrebleu (Post, 2018), its defaults: 4-grams, tokenizer 13a, exponential smoothing, case kept.

    >>> corpus_bleu(["the cat sat on the mat"], [["a cat sat", "the cat sat on the mat"]])
    100.0
    """
    rows = _check_references("corpus_bleu", predictions, references)
    if not rows:
        return math.nan
    streams = [list(stream) for stream in zip_longest(*rows)]
    return _percent(_bleu(effective_order=False).corpus_score(list(predictions), streams).score)


def mean_sentence_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over predictions of the BLEU of each alone: short answers weigh as much as long ones.

    N-grams longer than a prediction do not count (`effective_order`), as sacrebleu advises for sentences.

    Args:
        predictions: one a question.
        references: the right answers of each, at least one.

    Returns:
        A number in [0, 100]; NaN without predictions.

    Raises:
        CalibrantError: as `corpus_bleu`.

    Reference: sacrebleu (Post, 2018).

    >>> mean_sentence_bleu(["Paris", "Rome"], [["Paris"], ["Lyon"]])
    50.0
    """
    rows = _check_references("mean_sentence_bleu", predictions, references)
    if not rows:
        return math.nan
    metric = _bleu(effective_order=True)
    scores = [metric.sentence_score(text, row).score for text, row in zip(predictions, rows, strict=True)]
    return sum(map(_percent, scores)) / len(scores)


def _percent(score: float) -> float:
    """A perfect score is 100, not the 100.00000000000004 of a product of logarithms."""
    return min(max(float(score), 0.0), 100.0)


def _bleu(*, effective_order: bool) -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise CalibrantError("sacrebleu is not installed; install sacrebleu to compute BLEU") from None
    return BLEU(effective_order=effective_order)


def _check_references(
    caller: str, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[Sequence[str]]:
    rows = list(references)
    if len(rows) != len(predictions):
        raise CalibrantError(f"{caller}: {len(predictions)} predictions, but references for {len(rows)}")
    for i, row in enumerate(rows):
        if isinstance(row, str) or not row:
            got = "a text" if isinstance(row, str) else "none"
            raise CalibrantError(f"{caller}: prediction {i} needs a list of one or more references, got {got}")
    return rows


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold))
