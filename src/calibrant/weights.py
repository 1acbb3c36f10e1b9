"""From a score of a group to the weight of its update.

Weights are detached and multiply the advantage after it was centred and scaled: a constant per prompt would be erased
by either step if it came before.
"""

import torch
from torch import Tensor

from calibrant.checks import check_non_negative, check_shapes
from calibrant.groups import like_input


def group_alpha(alpha: float, num_valid: Tensor) -> Tensor:
    """Strength of a weight in a group of n rollouts.

    `alpha_G = alpha / ln n`; 0 for `n < 2`, so that weights are 1 there.

    Interpretation (c): the paper divides by the logarithm of the group size G. Here n counts the rollouts that have
    a finite reward, so that a group with unscorable rollouts is treated as the smaller group that it is; with all
    rollouts scorable, n = G.

    Args:
        alpha: strength before the group size is taken into account, at least 0 (GCPO: 0.6).
        num_valid: `[...]`, how many rollouts of each group count.

    Returns:
        `[...]`, float64, at least 0; for alpha = 0.6 it is 0.8656 at n = 2 and 0.2164 at n = 16.

    Reference: GCPO, section 3.4 and appendix F (b).

    >>> group_alpha(0.6, torch.tensor([16, 2, 1]))
    tensor([0.2164, 0.8656, 0.0000], dtype=torch.float64)
    """
    check_shapes("group_alpha", num_valid=(num_valid, "..."))
    check_non_negative("group_alpha", alpha=alpha)
    count = num_valid.detach().double()
    return torch.where(count >= 2, alpha / count.clamp(min=2.0).log(), 0.0)


def damp(uncertainty: Tensor, strength: Tensor | float) -> Tensor:
    """A weight that falls with uncertainty.

    `w = clip(1 - a u^2, 0, 1)`. The square leaves small doubts alone. An uncertainty that is not finite is no
    evidence: its weight is 1.

    Args:
        uncertainty: u, `[...]`.
        strength: a, a number or `[...]`.

    Returns:
        `[...]` in [0, 1], detached, in the type of `uncertainty`.

    Reference: GCPO, equation 8 (b).

    >>> damp(torch.tensor([0.0, 0.5, 2.0]), 0.4)
    tensor([1.0000, 0.9000, 0.0000])
    """
    u, a = _operands("damp", uncertainty, strength)
    return _or_one((1.0 - a * u.square()).clamp(0.0, 1.0), uncertainty)


def boost(informativeness: Tensor, strength: Tensor | float) -> Tensor:
    """A weight that grows with how much there is to learn.

    `w = 1 + a u`. A score that is not finite is no evidence: its weight is 1.

    Args:
        informativeness: u, `[...]`, at least 0.
        strength: a, a number or `[...]`.

    Returns:
        `[...]`, at least 1 for scores of at least 0, detached, in the type of `informativeness`.

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
    """Weights divided by their mean over a batch.

    `w_i / mean(w)`. The mean weight of a batch is a change of the learning rate in disguise; without it, weights only
    move strength between groups. Weights whose mean is 0 or not finite, and a batch in which none counts, stay as
    they are.

    Args:
        weights: `[...]`.
        where: `[...]`, boolean; which weights enter the mean. All are divided by it.

    Returns:
        `[...]`, detached, in the type of `weights`.

    >>> mean_one(torch.tensor([0.5, 1.5, 4.0]), torch.tensor([True, True, True]))
    tensor([0.2500, 0.7500, 2.0000])
    """
    check_shapes("mean_one", weights=(weights, "..."), where=(where, "..."))
    values = weights.detach().double()
    counted = values if where is None else values[where]
    mean = counted.mean() if counted.numel() else values.new_ones(())
    usable = torch.isfinite(mean) & (mean > 0)
    return like_input(values / torch.where(usable, mean, 1.0), weights)
