"""The plain advantages: every weight 1."""

import torch
from torch import Tensor

from calibrant.checks import check_grouped
from calibrant.groups import like_input
from calibrant.methods.outcome import Outcome


def grpo(rewards: Tensor, where: Tensor | None) -> Outcome:
    """Plain GRPO: group-standardised advantages, every weight 1.

    `A_i = (r_i - mean) / (std + 1e-4)`.

    Paper: Shao et al. 2024, DeepSeekMath (arXiv:2402.03300), section 4.1
    Per: prompt
    Effect: x 1, the plain advantage
    Certainty: (a) as TRL computes it: unbiased standard deviation, + 1e-4
    When: the baseline that every other method is measured against. Not the best choice where the size of a
        difference of rewards should count: it scales every group to the same size.

    >>> from calibrant import Groups, apply
    >>> apply("grpo", Groups(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))).advantages
    tensor([[ 1.4997, -0.4999, -0.4999, -0.4999]])
    """
    return _unweighted("grpo", rewards, where, "standardised")


def dr_grpo(rewards: Tensor, where: Tensor | None) -> Outcome:
    """Dr. GRPO: group-centred advantages in units of the reward, every weight 1.

    `A_i = r_i - mean`. Its loss sums over tokens and divides by a constant length.

    Paper: Liu et al. 2025, Understanding R1-Zero-Like Training (arXiv:2503.20783)
    Per: prompt
    Effect: x 1, the centred advantage in units of the reward
    Certainty: (a) as TRL computes it with scale_rewards="none"
    When: rewards whose differences mean the same everywhere, so that groups of nearly equal rewards should not be
        scaled up to full size. Check the learning rate: advantages are smaller than those of GRPO.

    >>> from calibrant import Groups, apply
    >>> apply("dr_grpo", Groups(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))).advantages
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    return _unweighted("dr_grpo", rewards, where, "centred")


def rloo(rewards: Tensor, where: Tensor | None) -> Outcome:
    """RLOO: reward minus the mean of the other rollouts, every weight 1.

    `A_i = r_i - sum_{j != i} r_j / (n - 1)`.

    Paper: Ahmadian et al. 2024, Back to Basics (arXiv:2402.14740)
    Per: prompt
    Effect: x 1, the leave-one-out advantage in units of the reward
    Certainty: (a) as TRL and verl compute it
    When: small groups, where a rollout's own reward in the mean biases the baseline. It is the centred advantage times
        n / (n - 1), so at 16 rollouts per prompt it hardly differs from Dr. GRPO.

    >>> from calibrant import Groups, apply
    >>> apply("rloo", Groups(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))).advantages
    tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])
    """
    return _unweighted("rloo", rewards, where, "leave_one_out")


def _unweighted(caller: str, rewards: Tensor, where: Tensor | None, base: str) -> Outcome:
    check_grouped(caller, rewards=rewards, where=where)
    return Outcome(like_input(torch.ones_like(rewards), rewards), {}, base)
