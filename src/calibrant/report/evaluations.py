"""Estimates of a saved evaluation, before and after training."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from calibrant.files import JsonObject
from calibrant.report.formats import interval_text
from calibrant.report.reading import finite

WHEN = ("before", "after")
SAMPLINGS = ("sampled", "greedy")
LABELS = {
    "f1": "F1",
    "em": "exact match",
    "accuracy": "accuracy",
    "sentence_bleu": "mean sentence BLEU",
    "corpus_bleu": "corpus BLEU",
}
"""Metric -> label, in the order of tables."""


class Estimate(NamedTuple):
    """A mean and its 95% interval; NaN where the file has no number."""

    mean: float
    low: float
    high: float


class BeforeAndAfter(NamedTuple):
    """One metric before and after training; None where it was not measured."""

    sampling: str
    metric: str
    before: Estimate | None
    after: Estimate | None

    @property
    def metric_label(self) -> str:
        """`F1`; the metric's own name if it has no label."""
        return LABELS.get(self.metric, self.metric)

    @property
    def label(self) -> str:
        """`F1, sampled`."""
        return f"{self.metric_label}, {self.sampling}"


def inside(data: object, *keys: str) -> object:
    """A value nested in dictionaries; None where a level is missing or is no dictionary.

    >>> inside({"a": {"b": 1}}, "a", "b"), inside({"a": 2}, "a", "b")
    (1, None)
    """
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def estimate(evaluation: object, *keys: str) -> Estimate | None:
    """The estimate at a path of keys, from an object with mean, low and high or from a number; None without a mean.

    >>> estimate({"greedy": {"f1": {"mean": 0.5, "low": 0.4, "high": 0.6}}}, "greedy", "f1")
    Estimate(mean=0.5, low=0.4, high=0.6)
    """
    value = inside(evaluation, *keys)
    values = value if isinstance(value, dict) else {"mean": value}
    result = Estimate(*(finite(values.get(key)) for key in Estimate._fields))
    return None if math.isnan(result.mean) else result


def estimate_text(value: Estimate | None) -> str:
    """`0.41 [0.38, 0.44]`; a dash for None."""
    return interval_text(*(value or ()))


def comparisons(evaluation: Mapping[str, JsonObject]) -> list[BeforeAndAfter]:
    """Every measured metric of `evaluation.json`: F1 first, sampled before greedy."""
    parts = [inside(side, sampling) for side in evaluation.values() for sampling in SAMPLINGS]
    names = {name for part in parts if isinstance(part, dict) for name in part}
    return [
        BeforeAndAfter(sampling, metric, *estimates)
        for metric in [*(name for name in LABELS if name in names), *sorted(names - set(LABELS))]
        for sampling in SAMPLINGS
        if any(estimates := [estimate(evaluation.get(when), sampling, metric) for when in WHEN])
    ]
