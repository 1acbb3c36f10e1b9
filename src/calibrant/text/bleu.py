"""BLEU by sacrebleu, of single answers, and of a corpus from counts that add up.

Defaults of sacrebleu (Post, 2018): 4-grams, tokenizer 13a, exponential smoothing, case kept.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from calibrant.errors import CalibrantError
from calibrant.text.metrics import reference_list


def sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    """BLEU of one prediction in [0, 1]; 0 without references.

    N-grams longer than the prediction do not count (`effective_order`), as sacrebleu advises for sentences.

    >>> sentence_bleu("Paris", ["Paris"]), sentence_bleu("Paris", [])
    (1.0, 0.0)
    """
    if not references:
        return 0.0
    return _percent(_bleu(effective_order=True).sentence_score(prediction, reference_list(references)).score) / 100


def bleu_counts(prediction: str, references: Sequence[str]) -> list[float]:
    """The counts that BLEU sums over a corpus: matching and all n-grams (n = 1 to 4), lengths of answer and reference.

    >>> bleu_counts("the cat sat", ["a cat sat"])
    [2, 1, 0, 0, 3, 2, 1, 0, 3, 3]
    """
    if not references:
        return [0] * 10
    score = _bleu(effective_order=True).sentence_score(prediction, reference_list(references))
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu_of_counts(counts: Sequence[float]) -> float:
    """Corpus BLEU in [0, 1] from the summed counts of its sentences.

    >>> bleu_of_counts(bleu_counts("the cat sat on the mat", ["the cat sat on the mat"]))
    1.0
    """
    total = [int(n) for n in counts]
    metric = _bleu(effective_order=False)
    score = metric.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method=metric.smooth_method)
    return _percent(score.score) / 100


def _percent(score: float) -> float:
    """A score within [0, 100]; a product of logarithms gives 100.00000000000004."""
    return min(max(float(score), 0.0), 100.0)


@cache
def _bleu(*, effective_order: bool) -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise CalibrantError("sacrebleu is not installed; install sacrebleu to compute BLEU") from None
    return BLEU(effective_order=effective_order)
