"""From a score of a group to the weight of its update.

Weights multiply the advantage after it was centred and scaled: either step would cancel a constant factor per prompt.
Tensors are `[...]`, results detached and in the type of the first argument. A score that is not finite has weight 1.
"""

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
