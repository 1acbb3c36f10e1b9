"""A method that shrinks the update of a group to the share of it that is signal."""

from collections.abc import Sequence

from torch import Tensor

from calibrant.advantages import standardised
from calibrant.checks import check_non_negative, check_shapes
from calibrant.groups import valid
from calibrant.methods.outcome import Outcome, weighed
from calibrant.signals import gradient_snr_weight, head_gradient_variance, reward_dispersion
from calibrant.weights import boost, group_alpha


def gradient_snr(
    rewards: Tensor,
    head_gram: Tensor,
    where: Tensor | None,
    *,
    alpha: float = 1.0,
    reward_alpha: float = 0.0,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """Shrinks the update of each group to the share of it that is signal, as the policy's own gradients say.

    `A~_i = A_i w`, `w = max(0, 1 - alpha (S^2 / n) / |mean a|^2)` with `a_i = A_i g_i`, the gradients of the output
    head times their advantages, and `S^2 = sum_i |a_i - mean a|^2 / (n - 1)`. At alpha = 1 the second term of w is the
    estimated share of noise in the squared norm of the group's mean gradient, and w the factor of least expected
    squared error. With `reward_alpha`, w is multiplied by `1 + reward_alpha RD / ln n`. Derived in docs/theory.md.

    Args:
        head_gram: `[N, G, G]`, inner products of the rollouts' gradients of the output head. A rollout whose squared
            norm is not finite is left out of the weight.
        alpha: strength, at least 0: 1 takes the noise as it is estimated; 0 gives plain GRPO, bit for bit.
        reward_alpha: strength of the boost by reward dispersion, at least 0 (GCPO has 0.6); 0: none.

    Returns:
        An outcome with the scores `signal_share` (in [0, 1], w at alpha = 1), `head_variance` (of the `a_i`, in
        squared units of a gradient) and, with reward_alpha, `reward_dispersion` and `reward_weight`. Without spread of
        rewards, and with fewer than two rollouts, the share and the weight are 1 and the advantages 0.

    Paper: none, ours; the factor is that of Stein and James 1961, its positive part
    Per: prompt
    Effect: x [0, 1]
    Certainty: (c) ours; the advantages of a group are taken as independent, the head's gradient as a proxy of all
    When: groups are small for how noisy they are, and few steps of full size do harm. Where noise dominates most
        groups the step shrinks as a whole: see the mean weight, and mean_one to keep the size of the step.

    >>> import torch
    >>> gram = torch.tensor([[[1.0, -0.8], [-0.8, 1.0]]])  # the advantages have opposite signs, so gradients agree
    >>> gradient_snr(torch.tensor([[2.0, 0.0]]), gram, None).weights
    tensor([[0.8889, 0.8889]])
    """
    check_shapes("gradient_snr", rewards=(rewards, "N G"), head_gram=(head_gram, "N G G"), where=(where, "N G"))
    check_non_negative("gradient_snr", alpha=alpha, reward_alpha=reward_alpha)
    where = valid(rewards, where)
    advantages = standardised(rewards.double(), where)
    scores = {
        "signal_share": gradient_snr_weight(head_gram, advantages, where),
        "head_variance": head_gradient_variance(head_gram, advantages, where),
    }
    weight = gradient_snr_weight(head_gram, advantages, where, strength=alpha)
    if reward_alpha:
        dispersion = reward_dispersion(rewards.double(), reward_range, where)
        gain = boost(dispersion, group_alpha(reward_alpha, where.sum(-1)))
        weight, scores = weight * gain, scores | {"reward_dispersion": dispersion, "reward_weight": gain}
    return weighed(rewards, where, weight, scores, mean_one=mean_one)
