"""Base advantages: how much better each rollout did than its group.

The conventions are those of `groups`: rewards and results are `[..., N, G]`. An advantage is exactly 0 for a rollout
without a finite reward, in a group with fewer than two scorable rollouts, and in a group without reward spread
(`max - min <= tol`); over the rollouts that count its mean is 0.
"""

import torch
from torch import Tensor

from calibrant.checks import check_non_negative, check_shapes
from calibrant.groups import NO_SPREAD, check_ddof, like_input, masked, mean_over, spread_over, std_over


def standardised(
    rewards: Tensor, where: Tensor | None = None, *, ddof: int = 1, eps: float = 1e-4, tol: float = NO_SPREAD
) -> Tensor:
    """The advantage of GRPO: reward minus group mean, in units of the group's standard deviation.

    `A_i = (r_i - mean) / (std + eps)`. Defaults are TRL's: unbiased deviation, `eps = 1e-4`. verl: `eps=1e-6`.
    `ddof=0` takes the population's deviation.

    Reference: Shao et al. 2024, DeepSeekMath (arXiv:2402.03300), section 4.1; conventions as in TRL's GRPOTrainer (a).

    >>> standardised(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.4997, -0.4999, -0.4999, -0.4999]])
    >>> standardised(torch.full((1, 3), 0.3))
    tensor([[0., 0., 0.]])
    """
    check_shapes("standardised", rewards=(rewards, "... N G"), where=(where, "... N G"))
    check_non_negative("standardised", eps=eps, tol=tol)
    check_ddof("standardised", ddof)
    values, mask = masked(rewards, where)
    deviation = values - mean_over(values, mask)[..., None]
    std = std_over(values, mask, ddof)[..., None]
    return like_input(_informative(deviation / (std + eps), values, mask, tol), rewards)


def centred(rewards: Tensor, where: Tensor | None = None, *, tol: float = NO_SPREAD) -> Tensor:
    """The advantage of Dr. GRPO: reward minus group mean.

    `A_i = r_i - mean`, in units of the reward: easy and hard prompts keep the size of their differences.

    Reference: Liu et al. 2025, Understanding R1-Zero-Like Training (arXiv:2503.20783) (a, as in TRL with
    `scale_rewards="none"`).

    >>> centred(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    check_shapes("centred", rewards=(rewards, "... N G"), where=(where, "... N G"))
    check_non_negative("centred", tol=tol)
    values, mask = masked(rewards, where)
    deviation = values - mean_over(values, mask)[..., None]
    return like_input(_informative(deviation, values, mask, tol), rewards)


def leave_one_out(rewards: Tensor, where: Tensor | None = None, *, tol: float = NO_SPREAD) -> Tensor:
    """The advantage of RLOO: reward minus the mean of the other rollouts.

    `A_i = r_i - sum_{j != i} r_j / (n - 1) = (r_i - mean) n / (n - 1)`, `n` the rollouts that count.

    Reference: Ahmadian et al. 2024, Back to Basics (arXiv:2402.14740) (a, as in TRL's and verl's RLOO).

    >>> leave_one_out(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])
    """
    check_shapes("leave_one_out", rewards=(rewards, "... N G"), where=(where, "... N G"))
    check_non_negative("leave_one_out", tol=tol)
    values, mask = masked(rewards, where)
    count = mask.sum(-1, keepdim=True)
    deviation = values - mean_over(values, mask)[..., None]
    return like_input(_informative(deviation * count / (count - 1).clamp(min=1), values, mask, tol), rewards)


def in_mean_deviations(
    rewards: Tensor, where: Tensor | None = None, *, eps: float = 1e-4, tol: float = NO_SPREAD
) -> Tensor:
    """The advantage of DGPO: reward minus group mean, in units of the group's mean absolute deviation.

    `A_i = (r_i - mean) / (mean |r - mean| + eps)`; the sum of `|A_i|` is the number of rollouts for every prompt, where
    with the standard deviation it is largest at a success rate of one half.

    Reference: DGPO, of MathForge (arXiv:2601.20614), the authors' code (a).

    >>> in_mean_deviations(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.9995, -0.6665, -0.6665, -0.6665]])
    """
    check_shapes("in_mean_deviations", rewards=(rewards, "... N G"), where=(where, "... N G"))
    check_non_negative("in_mean_deviations", eps=eps, tol=tol)
    values, mask = masked(rewards, where)
    deviation = torch.where(mask, values - mean_over(values, mask)[..., None], 0.0)
    size = deviation.abs().sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return like_input(_informative(deviation / (size + eps), values, mask, tol), rewards)


def total_rewards(rewards: Tensor, reward_weights: Tensor, aggregation: str = "sum_then_normalize") -> Tensor:
    """What TRL normalises to advantages: the weighted sum over K reward functions.

    `r_i = sum_k w_k r_ik`, or with `aggregation="normalize_then_sum"` (GDPO) `r_i = sum_k w_k standardised(r_k)_i`.
    A NaN adds nothing to the sum; a rollout without any reward is NaN.

    `aggregation` is TRL's `multi_objective_aggregation`; rewards are `[N, G, K]`, weights `[K]`, the result `[N, G]`.

    Reference: TRL's GRPOTrainer (a).

    >>> rewards = torch.tensor([[[0.0, 0.5], [1.0, 0.0], [0.0, 0.5], [1.0, 0.0]]])
    >>> total_rewards(rewards, torch.tensor([1.0, 2.0]))
    tensor([[1., 1., 1., 1.]])
    >>> total_rewards(rewards, torch.tensor([1.0, 2.0]), "normalize_then_sum")
    tensor([[ 0.8656, -0.8656,  0.8656, -0.8656]])
    """
    check_shapes("total_rewards", rewards=(rewards, "N G K"), reward_weights=(reward_weights, "K"))
    weights = reward_weights.to(rewards.device)
    if aggregation == "normalize_then_sum":
        by_function = standardised(rewards.double().movedim(-1, 0))
        total = (by_function.movedim(0, -1) * weights.double()).sum(-1).to(rewards)
    else:
        total = (rewards * weights).nansum(-1)
    return total.masked_fill(rewards.isnan().all(-1), torch.nan)


def _informative(advantages: Tensor, values: Tensor, mask: Tensor, tol: float) -> Tensor:
    """Exactly 0 where a rollout does not count or its group has no spread."""
    return torch.where(mask & (spread_over(values, mask) > tol)[..., None], advantages, 0.0)
