"""Intervals for metrics over answers, with prompts as the sample.

The G answers to a question are not independent: resampling single answers makes intervals too narrow, often by a
factor of sqrt(G). Whole prompts are resampled instead.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError
from calibrant.groups import like_input
from calibrant.statistics.counted import check_count, check_fraction
from calibrant.statistics.resampling import bootstrap_replicates, percentile_interval


class Interval(NamedTuple):
    """A figure and its bootstrap interval, each `[...]` as the statistic gives it."""

    value: Tensor  # on all prompts, each once
    low: Tensor
    high: Tensor
    standard_error: Tensor  # standard deviation of the replicates


def bootstrap_interval(
    statistic: Tensor | Callable[[Tensor], Tensor],
    num_prompts: int | None = None,
    *,
    where: Tensor | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Interval:
    """Interval of a figure over prompts, by resampling whole prompts (the cluster bootstrap).

    In each replicate N prompts are drawn with replacement, each with all its answers. The interval is the central
    part of the replicates (percentiles), without those in which the statistic is NaN.

    Args:
        statistic: one value per prompt, `[N]`, of which the mean is the figure (one that is not finite is out); or a
            function of prompt weights `[r, N]` (integers, how often each prompt was drawn) to `[r]` or `[r, ...]`.
            The metrics of this package take such weights, so their differences are functions too, and then paired:
            `lambda w: correctness_auc(a, right, prompt_weights=w) - correctness_auc(b, right, prompt_weights=w)`.
        num_prompts: N, for a function.
        where: `[N]`, boolean; prompts that may be drawn, all others have weight 0.
        resamples: number of replicates.
        level: of the interval, in (0, 1).

    Reference: Efron and Tibshirani (1993), percentile interval; resampling of clusters (c).

    >>> from calibrant.calibration import correctness_auc
    >>> confidence, right = torch.tensor([[0.9, 0.2], [0.6, 0.3], [0.4, 0.5]]), torch.tensor([[1, 0], [1, 0], [1, 0]])
    >>> interval = bootstrap_interval(lambda w: correctness_auc(confidence, right, prompt_weights=w), 3)
    >>> [round(x.item(), 4) for x in interval[:3]]
    [0.8889, 0.0, 1.0]
    """
    check_count("bootstrap_interval", resamples=resamples)
    check_fraction("bootstrap_interval", level=level)
    function, mask = _as_function(statistic, num_prompts, where)
    present = mask.nonzero()[:, 0]
    if not len(present):
        raise CalibrantError("bootstrap_interval: there is no prompt to resample")
    value = function(mask.long()[None])[0]
    replicates = bootstrap_replicates(
        lambda rows: function(_times_drawn(present[rows], len(mask))),
        len(present), resamples, width=len(mask), device=mask.device, generator=generator,
    )  # fmt: skip
    ends = percentile_interval(value, replicates, level)
    return Interval(*(like_input(x, value) for x in (value, *ends, _deviation(replicates))))


def _as_function(
    statistic: Tensor | Callable[[Tensor], Tensor], num_prompts: int | None, where: Tensor | None
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The function of weights, and which prompts may be drawn."""
    if isinstance(statistic, Tensor):
        check_shapes("bootstrap_interval", statistic=(statistic, "N"), where=(where, "N"))
        mask = torch.isfinite(statistic) if where is None else torch.isfinite(statistic) & where
        values = torch.where(mask, statistic.detach().double(), 0.0)
        return lambda weights: like_input(weights.double() @ values / weights.sum(-1), statistic), mask
    if num_prompts is None:
        raise CalibrantError("bootstrap_interval: num_prompts has to be given with a function of weights")
    check_count("bootstrap_interval", num_prompts=num_prompts)
    mask = torch.ones(num_prompts, dtype=torch.bool) if where is None else where
    check_shapes("bootstrap_interval", where=(mask, "N"))
    if len(mask) != num_prompts:
        raise CalibrantError(f"bootstrap_interval: where has {len(mask)} prompts and num_prompts is {num_prompts}")
    return statistic, mask


def _times_drawn(rows: Tensor, num_prompts: int) -> Tensor:
    """How often each prompt was drawn: `[r, n]` numbers of prompts -> `[r, N]`."""
    counts = torch.zeros(len(rows), num_prompts, dtype=torch.long, device=rows.device)
    return counts.scatter_add(1, rows, torch.ones_like(rows))


def _deviation(replicates: Tensor) -> Tensor:
    """Standard deviation over the first axis without NaN; 0 of fewer than two."""
    counts = ~replicates.isnan()
    n = counts.sum(0)
    mean = torch.where(counts, replicates, 0.0).sum(0) / n.clamp(min=1)
    squares = torch.where(counts, (replicates - mean).square(), 0.0).sum(0)
    return (squares / (n - 1).clamp(min=1)).sqrt()
