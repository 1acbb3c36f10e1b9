"""Calibration and selection of sampled answers of a rollout file: every figure with an interval over prompts."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from calibrant import calibration as measures
from calibrant.calibration import Vote, bootstrap_interval, vote_accuracy
from calibrant.rescoring import RolloutGroups
from calibrant.text.inputs import by_key

RESAMPLES = 1000
POINTS = 50
"""Points of a curve that are kept for drawing."""


def calibration(frame: pd.DataFrame, key: Callable[[str], str], *, seed: int = 0) -> dict[str, Any]:
    """Whether confidence tells right answers from wrong ones, and what selecting by it gains.

    The confidence of an answer is its mean log-probability a token, as a probability `exp` of that (CAPO).

    Args:
        frame: sampled answers with `correct`, `logprob` and `num_tokens`.
        key: answer -> string, equal for answers that vote together.
        seed: of the bootstrap.

    Returns:
        `calibration` (name -> mean, low, high), `selection` (rule -> number of samples -> mean, low, high) and
        `curves` (reliability, precision over coverage); or `calibration_missing`, the reason why there are none.
    """
    missing = [name for name in ("correct", "logprob", "num_tokens") if name not in frame or frame[name].isna().all()]
    if missing:
        return {"calibration_missing": f"the rollouts have no {', '.join(missing)}"}
    groups = RolloutGroups(frame)
    given = groups.given()
    return measure(
        given["mean_logprob"].masked_fill(~groups.counts, torch.nan),
        given["correct"].masked_fill(~groups.counts, torch.nan),
        by_key(key)(groups.grouped(groups.answers)),
        by_key(str)(groups.grouped(groups.completions)),
        seed,
    )


def measure(confidence: Tensor, correct: Tensor, clusters: Tensor, text_ids: Tensor, seed: int = 0) -> dict[str, Any]:
    """As `calibration`, of tensors `[N, G]`; NaN is out."""
    with_interval = _Intervals(len(confidence), seed)
    probability = confidence.exp()
    found = {
        "correctness_auc": lambda w: measures.correctness_auc(confidence, correct, prompt_weights=w),
        "correctness_auc_per_prompt": lambda w: measures.correctness_auc(
            confidence, correct, pooling="per_prompt", prompt_weights=w
        ),
        "ece_equal_width_15": lambda w: measures.expected_calibration_error(probability, correct, prompt_weights=w),
        "brier": lambda w: measures.brier(probability, correct, prompt_weights=w),
        "precision_coverage_area": lambda w: _areas(confidence, correct, w).area,
        "precision_coverage_oracle": lambda w: _areas(confidence, correct, w).oracle_area,
        "precision_coverage_random": lambda w: _areas(confidence, correct, w).random_area,
    }
    return {
        "calibration": {name: with_interval(figure) for name, figure in found.items()},
        "selection": _selection(confidence, correct, clusters, text_ids, with_interval),
        "curves": _curves(confidence, correct),
    }


class _Intervals:
    """A figure with its interval; the same resampled prompts for every figure."""

    def __init__(self, prompts: int, seed: int):
        self.prompts, self.seed = prompts, seed

    def __call__(self, figure: Callable[[Tensor], Tensor]) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.seed)
        found = bootstrap_interval(figure, self.prompts, resamples=RESAMPLES, generator=generator)
        return {"mean": found.value.item(), "low": found.low.item(), "high": found.high.item()}


def _areas(confidence: Tensor, correct: Tensor, weights: Tensor) -> measures.CoverageAreas:
    return measures.precision_coverage_areas(confidence, correct, prompt_weights=weights)


def _selection(
    confidence: Tensor, correct: Tensor, clusters: Tensor, text_ids: Tensor, with_interval: _Intervals
) -> dict[str, Any]:
    """Accuracy of one answer a prompt, chosen among the first n by each rule, and pass@k."""
    probability, counts = confidence.exp(), ~confidence.isnan() & ~correct.isnan()
    rules: dict[str, Callable[[int], Vote]] = {
        "majority_vote": lambda n: measures.majority_vote(clusters, counts, num_samples=n),
        "confidence_weighted_vote": lambda n: measures.confidence_weighted_vote(
            clusters, probability, counts, num_samples=n
        ),
        "perplexity_consistency": lambda n: measures.perplexity_consistency(
            clusters, confidence, text_ids, counts, num_samples=n
        ),
        "best_of_n": lambda n: measures.best_of_n(confidence, counts, num_samples=n),
    }
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= confidence.shape[1]]
    table: dict[str, Any] = {}
    for name, rule in rules.items():
        table[name] = {str(n): with_interval(_accuracy(rule(n), correct, counts)) for n in sizes}
    table["pass_at_k"] = {str(n): with_interval(_pass_at(n, correct, counts)) for n in sizes}
    return table


def _accuracy(vote: Vote, correct: Tensor, where: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda weights: vote_accuracy(vote.credit, correct, where, prompt_weights=weights)


def _pass_at(k: int, correct: Tensor, where: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda weights: measures.pass_at_k(correct, k, where, prompt_weights=weights)


def _curves(confidence: Tensor, correct: Tensor) -> dict[str, Any]:
    coverage = measures.precision_coverage(confidence, correct, coverages=[i / POINTS for i in range(1, POINTS + 1)])
    reliability = measures.reliability_curve(confidence.exp(), correct)
    return {
        "precision_coverage": {"coverage": coverage.coverage.tolist(), "precision": coverage.precision.tolist()},
        "reliability": {
            "edges": reliability.edges.tolist(),
            "confidence": reliability.confidence.tolist(),
            "accuracy": reliability.accuracy.tolist(),
            "counts": reliability.counts.tolist(),
        },
    }
