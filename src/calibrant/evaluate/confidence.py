"""Calibration and selection of sampled answers of a rollout file: every figure with an interval over prompts."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from calibrant import calibration as measures
from calibrant.calibration import Vote, bootstrap_interval, vote_accuracy
from calibrant.rollouts import RolloutGroups
from calibrant.text.inputs import by_key

Figures = Callable[[Tensor], Mapping[Any, Tensor]]
"""Prompt weights `[r, N]` -> figures by name, each `[r]`."""

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
    selected = _selection(confidence, correct, clusters, text_ids)

    def figures(weights: Tensor) -> dict[Any, Tensor]:
        trust = _trust(confidence, correct, weights)
        return {**trust, **{name: figure(weights) for name, figure in selected.items()}}

    found = _intervals(figures, len(confidence), seed)
    table: dict[str, Any] = {}
    for rule, size in selected:
        table.setdefault(rule, {})[str(size)] = found.pop((rule, size))
    return {"calibration": found, "selection": table, "curves": _curves(confidence, correct)}


def _intervals(figures: Figures, prompts: int, seed: int) -> dict[Any, dict[str, float]]:
    """Figures with their intervals, all from the same resampled prompts."""
    names = list(figures(torch.ones(1, prompts, dtype=torch.long)))
    found = bootstrap_interval(
        lambda weights: torch.stack([x.double() for x in figures(weights).values()], dim=-1),
        prompts,
        resamples=RESAMPLES,
        generator=torch.Generator().manual_seed(seed),
    )
    columns = {"mean": found.value.tolist(), "low": found.low.tolist(), "high": found.high.tolist()}
    return {name: {key: values[i] for key, values in columns.items()} for i, name in enumerate(names)}


def _trust(confidence: Tensor, correct: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Whether confidence tells right from wrong, under prompt weights `[r, N]`."""
    probability = confidence.exp()
    areas = measures.precision_coverage_areas(confidence, correct, prompt_weights=weights)
    return {
        "correctness_auc": measures.correctness_auc(confidence, correct, prompt_weights=weights),
        "correctness_auc_per_prompt": measures.correctness_auc(
            confidence, correct, pooling="per_prompt", prompt_weights=weights
        ),
        "ece_equal_width_15": measures.expected_calibration_error(probability, correct, prompt_weights=weights),
        "brier": measures.brier(probability, correct, prompt_weights=weights),
        "precision_coverage_area": areas.area,
        "precision_coverage_oracle": areas.oracle_area,
        "precision_coverage_random": areas.random_area,
    }


def _selection(
    confidence: Tensor, correct: Tensor, clusters: Tensor, text_ids: Tensor
) -> dict[tuple[str, int], Callable[[Tensor], Tensor]]:
    """Accuracy of one answer a prompt, by votes of the first n and best of any n, and pass@k: functions of weights."""
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
    chosen = {(name, n): _accuracy(rule(n), correct, counts) for name, rule in rules.items() for n in sizes}
    return chosen | {("pass_at_k", n): _pass_at(n, correct, counts) for n in sizes}


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
