"""EGPO: weights by the certainty of right and of wrong rollouts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.checks import (
    check_around_one,
    check_grouped,
    check_non_negative,
    check_option,
    check_positive,
    check_share,
)
from calibrant.groups import LARGEST_REWARD, NO_SPREAD, like_input, masked, spread_over, valid
from calibrant.methods.outcome import BASES, Outcome, in_type_of
from calibrant.methods.verdicts import binary_verdicts


def egpo(
    rewards: Tensor,
    mean_logprob: Tensor,
    where: Tensor | None,
    correct: Tensor | None = None,
    total_rewards: Tensor | None = None,
    *,
    low: float = 0.5,
    high: float = 2.0,
    eps: float = 1e-6,
    renormalise: str = "none",
    reading: str = "asymmetric",
    nsr: bool = True,
    nsr_share: float | None = None,
    reward_range: Sequence[float] = (0.0, 2.0),
) -> Outcome:
    """EGPO: weights above 1 for certain right rollouts, below 1 for uncertain wrong ones; all-wrong groups get -w.

    With `H_i` the mean negative log-probability per token of rollout i, `H` its mean over the group, and the certainty
    ratio `c_i = H / (H_i + eps)`: `w_i = max(1, clip(c_i, low, high))` if right, `min(1, clip(c_i, low, high))` if
    wrong; `A~_i = A_i w_i`. By design, `A~_i` does not sum to 0 over a group.

    Negative-sample reinforcement: in a group whose rollouts are all wrong and have equal rewards, `A~_i = -w_i`
    instead of 0. This term lowers the likelihood of all that is sampled and has no equilibrium. With `nsr_share`, if
    more than `max(1, floor(nsr_share N))` of the N groups are all wrong, their advantages are scaled down until their
    sum is that of this many groups (c); the paper has no such cap.

    Args:
        mean_logprob: `-H_i` under the policy that sampled; a rollout without a finite one has weight 1.
        correct: 1 right, 0 wrong, NaN unknown, which has weight 1. None: from binary rewards.
        total_rewards: the sum of all reward functions; groups in which it has spread keep `A_i w_i`.
        low: the lowest weight, in [0, 1].
        high: the highest weight, at least 1.
        eps: keeps the ratio finite, above 0; a group whose mean is below it has weights 1 (c).
        renormalise: "none", "weight_mean" (weights over their mean in the group) or "l1" (weights scaled so that the
            absolute advantages of a group keep their sum). With either, right rollouts may have weights below 1.
        reading: "asymmetric"; "symmetric", `clip(c_i, low, high)` for right and wrong alike; or "reversed", the
            asymmetric one of `H_i / (H + eps)`, which amplifies uncertain right rollouts.
        nsr: whether groups that are all wrong have the advantages `-w_i`.
        nsr_share: share of the groups, in [0, 1]; if more are all wrong, their advantages are scaled down. None: no
            such cap.

    Scores: certainty_ratio (`c_i`, `[N, G]`, 1 where unknown), nsr (`[N]`, 1 for a group with the advantages `-w_i`)
    Paper: EGPO (arXiv:2602.22751)
    Per: rollout
    Effect: x [0.5, 2]: right x 1 to 2, wrong x 0.5 to 1; -1 to -0.5 in groups that are all wrong
    Certainty: (b) the formula; low, high, eps, the renormalisation and the cap are interpretations (c)
    When: the policy's own certainty is informative, and many prompts are still all wrong. Filters that drop groups
        without spread (dynamic sampling) remove the groups with the advantages `-w_i`.

    >>> logprobs = torch.tensor([[-0.2, -0.4, -0.2, -0.8]])
    >>> egpo(torch.tensor([[1.0, 1.0, -1.0, -1.0]]), logprobs, None).weights
    tensor([[2.0000, 1.0000, 1.0000, 0.5000]])
    """
    tensors = {"mean_logprob": mean_logprob, "correct": correct, "total_rewards": total_rewards}
    check_grouped("egpo", rewards=rewards, where=where, **tensors)
    check_around_one("egpo", low, high)
    check_non_negative("egpo", low=low)
    check_positive("egpo", eps=eps)
    if nsr_share is not None:
        check_share("egpo", nsr_share=nsr_share)
    check_option("egpo", ("asymmetric", "symmetric", "reversed"), reading=reading)
    check_option("egpo", ("none", "weight_mean", "l1"), renormalise=renormalise)
    where = valid(rewards, where)
    if reading == "symmetric" and not nsr:  # right and wrong are treated alike
        right = torch.where(where, 1.0, torch.nan)
    else:
        right = binary_verdicts("egpo", rewards, correct, where, reward_range)
    ratio, finite = _certainty_ratio(mean_logprob, where, eps, reading)
    weights = _clamped(ratio, finite, right, low, high, reading)
    base = BASES["standardised"](rewards, where).double()
    pushed = _all_wrong(rewards, total_rewards, right, where) & bool(nsr)
    mask = pushed[:, None] & where
    base = torch.where(mask, -1.0, base)
    weights = like_input(_renormalised(weights, base, where, renormalise), rewards)
    scores = in_type_of(rewards, {"certainty_ratio": ratio, "nsr": pushed.double()})
    return Outcome(weights, scores, base * _cap(pushed, where, nsr_share), replaced=mask)


def _certainty_ratio(mean_logprob: Tensor, where: Tensor, eps: float, reading: str) -> tuple[Tensor, Tensor]:
    """`c_i`, `[N, G]`, and where it is finite: for rollouts with a likelihood in groups with at least two of them."""
    entropy = -mean_logprob.detach().double()
    finite = where & torch.isfinite(entropy)
    entropy = torch.where(finite, entropy.clamp(0.0, LARGEST_REWARD), 0.0)
    count = finite.sum(-1, keepdim=True)
    mean = entropy.sum(-1, keepdim=True) / count.clamp(min=1)
    finite = finite & (count >= 2) & (mean >= eps)
    ratio = entropy / (mean + eps) if reading == "reversed" else mean / (entropy + eps)
    return torch.where(finite, ratio, 1.0), finite


def _clamped(ratio: Tensor, finite: Tensor, right: Tensor, low: float, high: float, reading: str) -> Tensor:
    clipped = torch.where(finite, ratio.clamp(low, high), 1.0)
    if reading == "symmetric":
        return clipped
    asymmetric = torch.where(right == 1, clipped.clamp(min=1.0), clipped.clamp(max=1.0))
    return torch.where(torch.isnan(right), 1.0, asymmetric)


def _all_wrong(rewards: Tensor, total_rewards: Tensor | None, right: Tensor, where: Tensor) -> Tensor:
    """Groups of at least two scorable rollouts that are all wrong, with no differences of reward to learn from."""
    spread = torch.zeros_like(where[:, 0])
    for sums in (rewards, total_rewards):
        if sums is not None:
            spread |= spread_over(*masked(sums, where)) > NO_SPREAD
    return (where.sum(-1) >= 2) & ((right == 0) | ~where).all(-1) & ~spread


def _cap(pushed: Tensor, where: Tensor, share: float | None) -> float:
    """The factor that limits groups that are all wrong to their share of the groups."""
    if share is None:
        return 1.0
    allowed = max(1, int(share * int((where.sum(-1) >= 2).sum()) + 1e-9))
    return min(1.0, allowed / max(1, int(pushed.sum())))


def _renormalised(weights: Tensor, base: Tensor, where: Tensor, renormalise: str) -> Tensor:
    if renormalise == "none":
        return weights
    size = base.abs() if renormalise == "l1" else torch.ones_like(weights)
    before = torch.where(where, size, 0.0).sum(-1, keepdim=True)
    after = torch.where(where, size * weights, 0.0).sum(-1, keepdim=True)
    usable = (before > 0) & (after > 0)
    return torch.where(usable & where, weights * before / torch.where(usable, after, 1.0), weights)
