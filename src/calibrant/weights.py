"""From a score of a group to the weight of its update.

Weights multiply the advantage after it was centred and scaled: either step would cancel a constant factor per prompt.
Tensors are `[...]`, results detached and in the type of the first argument. A score that is not finite has weight 1.
"""

import math

import torch
from torch import Tensor

from calibrant.checks import check_non_negative, check_shapes
from calibrant.groups import like_input


def group_alpha(alpha: float, num_valid: Tensor) -> Tensor:
    """Strength of a weight in a group of n rollouts.

    `alpha_G = alpha / ln n` in float64; 0 for `n < 2`, so that weights are 1 there. GCPO has alpha 0.6.

    Reference: GCPO, section 3.4 and appendix F (b). The paper divides by the logarithm of the group size G; here n
    counts the scorable rollouts (c).

    >>> group_alpha(0.6, torch.tensor([16, 2, 1]))
    tensor([0.2164, 0.8656, 0.0000], dtype=torch.float64)
    """
    check_shapes("group_alpha", num_valid=(num_valid, "..."))
    check_non_negative("group_alpha", alpha=alpha)
    count = num_valid.detach().double()
    return torch.where(count >= 2, alpha / count.clamp(min=2.0).log(), 0.0)


def damp(uncertainty: Tensor, strength: Tensor | float) -> Tensor:
    """A weight in [0, 1] that falls with uncertainty u, by strength a: `w = clip(1 - a u^2, 0, 1)`.

    The square keeps the weight of small uncertainties near 1.

    Reference: GCPO, equation 8 (b).

    >>> damp(torch.tensor([0.0, 0.5, 2.0]), 0.4)
    tensor([1.0000, 0.9000, 0.0000])
    """
    u, a = _operands("damp", uncertainty, strength)
    return _or_one((1.0 - a * u.square()).clamp(0.0, 1.0), uncertainty)


def boost(informativeness: Tensor, strength: Tensor | float) -> Tensor:
    """A weight that grows with how informative a group is, u of at least 0, by strength a: `w = 1 + a u`.

    Reference: GCPO, equation 11 (b).

    >>> boost(torch.tensor([0.0, 0.5, 1.0]), 0.2)
    tensor([1.0000, 1.1000, 1.2000])
    """
    u, a = _operands("boost", informativeness, strength)
    return _or_one(1.0 + a * u, informativeness)


def _operands(caller: str, score: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
    per_group = strength if isinstance(strength, Tensor) and strength.ndim else None
    check_shapes(caller, score=(score, "..."), strength=(per_group, "..."))
    u = score.detach().double()
    return u, torch.as_tensor(strength, dtype=torch.float64, device=u.device).detach()


def _or_one(weights: Tensor, score: Tensor) -> Tensor:
    return like_input(torch.where(torch.isfinite(score), weights, 1.0), score)


def mean_one(weights: Tensor, where: Tensor | None = None) -> Tensor:
    """Weights divided by their mean over a batch, `w_i / mean(w)`.

    The mean weight of a batch has the effect of a factor on the learning rate; without it, weights only differ between
    groups. `where` says which weights enter the mean; all are divided by it. If it is 0 or not finite, or no weight
    counts, weights are not changed.

    >>> mean_one(torch.tensor([0.5, 1.5, 4.0]), torch.tensor([True, True, True]))
    tensor([0.2500, 0.7500, 2.0000])
    """
    check_shapes("mean_one", weights=(weights, "..."), where=(where, "..."))
    values = weights.detach().double()
    counted = values if where is None else values[where]
    mean = counted.mean() if counted.numel() else values.new_ones(())
    usable = torch.isfinite(mean) & (mean > 0)
    return like_input(values / torch.where(usable, mean, 1.0), weights)


WINDOW = 256
"""The number of latest signals whose distribution `running_weights` remembers."""
LARGEST = 4.0
"""The largest weight of `running_weights`; signals with many ties reach it before the strength that was asked for."""
RESOLUTION = 1e-6
"""Signals that differ by less than this share of their median magnitude count as equal: they differ by rounding."""
STEEPEST = 64.0  # of the exponent of a weight over its rank: beyond it the bound on weights holds for any distribution


def running_weights(signals: Tensor, window: Tensor | None, strength: float) -> tuple[Tensor, Tensor]:
    """Weights of mean 1 and a given coefficient of variation, by the ranks of signals in their running distribution.

    `w = exp(a r) / mean(exp(a r))`, with r in (0, 1) the rank, and a the exponent for which the weights of the
    distribution have the standard deviation `strength`; a is smaller where the largest weight would exceed `LARGEST`.
    Ranks do not depend on the scale of a signal. Of K signals, the normal quantiles of their ranks are added, and the
    sum is ranked, so that each has the same share.

    Args:
        signals: `[B, K]`, oriented so that larger values get larger weights; rows that are not finite have weight 1
            and stay out of the distribution. A constant signal gives weight 1.
        window: the signals of earlier batches, `[M, K]`; None before the first.
        strength: coefficient of variation, at least 0; 0 gives weights of exactly 1.

    Returns:
        Weights `[B]` in float64, and the window for the next batch: the latest `WINDOW` signals.

    Certainty: (c) ours.

    >>> running_weights(torch.tensor([[1.0], [2.0], [3.0], [float("nan")]]), None, 0.3)[0]
    tensor([0.6571, 0.9550, 1.3879, 1.0000], dtype=torch.float64)
    """
    check_non_negative("running_weights", strength=strength)
    check_shapes("running_weights", signals=(signals, "B K"), window=(window, "M K"))
    signals = signals.detach().double().cpu()
    finite = signals.isfinite().all(-1)
    new = signals[finite]
    window = new if window is None else torch.cat([window.detach().double().cpu(), new])
    weights = torch.ones(len(signals), dtype=torch.float64)
    if len(window):
        weights[finite] = _tilted(_ranks(_quantiles(window).sum(-1)), strength)[len(window) - len(new) :]
    return weights, window[-WINDOW:].clone()


def _quantiles(values: Tensor) -> Tensor:
    """Normal quantiles `[M, K]` of ranks, per column; 0 for a constant column."""
    ranks = torch.stack([_ranks(column) for column in values.T], dim=-1)
    return math.sqrt(2.0) * torch.erfinv(2.0 * ranks - 1.0)


def _ranks(values: Tensor) -> Tensor:
    """Mid-ranks in (0, 1) `[M]`; values that differ by rounding alone share theirs."""
    size = values[values != 0].abs()
    step = RESOLUTION * size.median() if len(size) else values.new_ones(())
    rounded = (values / step.clamp(min=torch.finfo(values.dtype).tiny)).round()
    ordered = rounded.sort().values
    below, through = (torch.searchsorted(ordered, rounded, side=side) for side in ("left", "right"))
    return (below + through).double() / (2 * len(values))


def _tilted(ranks: Tensor, strength: float) -> Tensor:
    """`exp(a r) / mean(exp(a r))` with the deviation `strength`, or the largest that `LARGEST` allows; a by bisection.

    The deviation and the largest weight grow with a.
    """
    low, high = 0.0, STEEPEST
    for _ in range(60):
        middle = (low + high) / 2
        weights = _exponential(ranks, middle)
        fits = weights.std(correction=0) <= strength and weights.max() <= LARGEST
        low, high = (middle, high) if fits else (low, middle)
    return _exponential(ranks, low if ranks.min() < ranks.max() and strength > 0 else 0.0)


def _exponential(ranks: Tensor, steepness: float) -> Tensor:
    weights = (steepness * (ranks - ranks.max())).exp()
    return weights / weights.mean()
