"""Calibration and selection of sampled answers: each metric with a 95% bootstrap interval over prompts."""

from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from calibrant import calibration as measures
from calibrant.calibration import Vote, bootstrap_interval, vote_accuracy
from calibrant.files import JsonObject
from calibrant.rewards.stated import log_confidence
from calibrant.rollouts import RolloutGroups
from calibrant.text.inputs import by_key

Name = str | tuple[str, int]  # a metric, or a selection rule with its number of samples
Metrics = Callable[[Tensor], Mapping[Name, Tensor]]
"""Prompt weights `[r, N]`, one row per bootstrap resample -> metrics by name, each `[r]`."""

RESAMPLES = 1000  # number of bootstrap resamples
POINTS = 50  # number of points of the precision-coverage curve


def calibration(frame: pd.DataFrame, key: Callable[[str], str], *, seed: int = 0) -> JsonObject:
    """Whether confidence separates right answers from wrong ones, and the accuracy of selecting by it.

    The confidence of an answer is `exp` of its mean log-probability per token (CAPO); answers with equal keys vote
    together. `frame` holds sampled answers with `correct`, `logprob` and `num_tokens`.

    Returns:
        `calibration` (name -> mean, low, high), `selection` (rule -> number of samples -> mean, low, high) and
        `curves` (reliability, precision over coverage); or `calibration_missing`, the reason why there are none. Where
        completions state a confidence, `stated_calibration` and `stated_share`, that of the answers that do.
    """
    missing = [name for name in ("correct", "logprob", "num_tokens") if name not in frame or frame[name].isna().all()]
    groups = RolloutGroups(frame)
    if missing:
        stated = {} if "correct" in missing else stated_calibration(groups, seed)
        return {"calibration_missing": f"the rollouts have no {', '.join(missing)}"} | stated
    given = groups.given()
    return measure(
        given["mean_logprob"].masked_fill(~groups.counts, torch.nan),
        given["correct"].masked_fill(~groups.counts, torch.nan),
        by_key(key)(groups.grouped(groups.answers)),
        by_key(str)(groups.grouped(groups.completions)),
        seed,
    ) | stated_calibration(groups, seed)


def stated_calibration(groups: RolloutGroups, seed: int = 0) -> JsonObject:
    """The calibration of the confidence that completions state (`rewards.stated_confidence`); empty if none does."""
    stated = torch.tensor([log_confidence(text) for text in groups.completions], dtype=torch.float64)
    confidence = stated.view(groups.counts.shape).masked_fill(~groups.counts, torch.nan)
    if confidence.isnan().all():
        return {}
    correct = groups.given()["correct"].masked_fill(~groups.counts, torch.nan)
    values = _intervals(lambda weights: _calibration(confidence, correct, weights), len(confidence), seed)
    share = (~confidence.isnan()).sum() / groups.counts.sum()
    return {"stated_calibration": values, "stated_share": share.item()}


def measure(confidence: Tensor, correct: Tensor, clusters: Tensor, text_ids: Tensor, seed: int = 0) -> JsonObject:
    """As `calibration`, from tensors `[N, G]`; NaN in `confidence` or `correct` excludes a rollout."""
    selected = _selection(confidence, correct, clusters, text_ids)

    def metrics(weights: Tensor) -> dict[Name, Tensor]:
        accuracies: dict[Name, Tensor] = {name: accuracy(prompt_weights=weights) for name, accuracy in selected.items()}
        return {**_calibration(confidence, correct, weights), **accuracies}

    values = _intervals(metrics, len(confidence), seed)
    selection: dict[str, JsonObject] = {}
    for rule, size in selected:
        selection.setdefault(rule, {})[str(size)] = values.pop((rule, size))
    return {"calibration": values, "selection": selection, "curves": _curves(confidence, correct)}


def _intervals(metrics: Metrics, prompts: int, seed: int) -> dict[Name, dict[str, float]]:
    """Metric -> mean and 95% bootstrap interval (low, high); all metrics read the same resampled prompts."""
    names = list(metrics(torch.ones(1, prompts, dtype=torch.long)))
    interval = bootstrap_interval(
        lambda weights: torch.stack([x.double() for x in metrics(weights).values()], dim=-1),
        prompts,
        resamples=RESAMPLES,
        generator=torch.Generator().manual_seed(seed),
    )
    rows = zip(interval.value.tolist(), interval.low.tolist(), interval.high.tolist(), strict=True)
    return {name: dict(zip(("mean", "low", "high"), row, strict=True)) for name, row in zip(names, rows, strict=True)}


def _calibration(confidence: Tensor, correct: Tensor, weights: Tensor) -> dict[Name, Tensor]:
    """Calibration metrics under prompt weights `[r, N]`, each `[r]`."""
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
) -> dict[tuple[str, int], Callable[..., Tensor]]:
    """Rule and n -> accuracy of one answer per prompt, a function of `prompt_weights`.

    Votes select among the first n samples, `best_of_n` and `pass_at_k` among any n.
    """
    probability, counts = confidence.exp(), ~confidence.isnan() & ~correct.isnan()
    rules: dict[str, Callable[..., Vote]] = {
        "majority_vote": partial(measures.majority_vote, clusters),
        "confidence_weighted_vote": partial(measures.confidence_weighted_vote, clusters, probability),
        "perplexity_consistency": partial(measures.perplexity_consistency, clusters, confidence, text_ids),
        "best_of_n": partial(measures.best_of_n, confidence),
    }
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= confidence.shape[1]]
    accuracies: dict[tuple[str, int], Callable[..., Tensor]] = {
        (name, n): partial(vote_accuracy, rule(where=counts, num_samples=n).credit, correct, counts)
        for name, rule in rules.items()
        for n in sizes
    }
    return accuracies | {("pass_at_k", n): partial(measures.pass_at_k, correct, n, counts) for n in sizes}


def _curves(confidence: Tensor, correct: Tensor) -> dict[str, dict[str, list[float]]]:
    coverage = measures.precision_coverage(confidence, correct, coverages=[i / POINTS for i in range(1, POINTS + 1)])
    reliability = measures.reliability_curve(confidence.exp(), correct)
    return {
        "precision_coverage": {name: getattr(coverage, name).tolist() for name in ("coverage", "precision")},
        "reliability": {
            name: getattr(reliability, name).tolist() for name in ("edges", "confidence", "accuracy", "counts")
        },
    }
