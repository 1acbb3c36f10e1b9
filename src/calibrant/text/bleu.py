"""BLEU by sacrebleu: of a corpus, of sentences, and from counts that add up."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

from calibrant.errors import CalibrantError


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
    return 100 * sum(sentence_bleu(text, row) for text, row in zip(predictions, rows, strict=True)) / len(rows)


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """BLEU of one prediction as a share of 1, as `mean_sentence_bleu` averages it; 0 without references.

    >>> sentence_bleu("Paris", ["Paris"]), sentence_bleu("Paris", [])
    (1.0, 0.0)
    """
    if not references:
        return 0.0
    return _percent(_bleu(effective_order=True).sentence_score(prediction, list(references)).score) / 100


def bleu_counts(prediction: str, references: Sequence[str]) -> list[float]:
    """What BLEU adds up over a corpus: matching and all n-grams (n = 1 to 4), lengths of prediction and reference.

    >>> bleu_counts("the cat sat", ["a cat sat"])
    [2, 1, 0, 0, 3, 2, 1, 0, 3, 3]
    """
    if not references:
        return [0] * 10
    found = _bleu(effective_order=True).sentence_score(prediction, list(references))
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


def bleu_of_counts(counts: Sequence[float]) -> float:
    """Corpus BLEU as a share of 1, from the sum of the counts of its sentences.

    >>> bleu_of_counts(bleu_counts("the cat sat on the mat", ["the cat sat on the mat"]))
    1.0
    """
    whole = [int(n) for n in counts]
    metric = _bleu(effective_order=False)
    score = metric.compute_bleu(whole[:4], whole[4:8], whole[8], whole[9], smooth_method=metric.smooth_method)
    return _percent(score.score) / 100


def _percent(score: float) -> float:
    """A perfect score is 100, not the 100.00000000000004 of a product of logarithms."""
    return min(max(float(score), 0.0), 100.0)


@cache
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
