"""Methods that damp by a variance: of a prompt's rewards, a rollout's importance ratios, a group's gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.advantages import standardised
from calibrant.checks import check_grouped, check_non_negative, check_option, check_reward_range, check_shapes
from calibrant.groups import masked, std_over, valid
from calibrant.methods.inputs import gram_at
from calibrant.methods.outcome import Outcome, weighed
from calibrant.signals import gradient_snr_weight, head_gradient_variance, reward_dispersion
from calibrant.weights import boost, group_alpha

STRENGTHS = {"linear": 0.6, "exponential": 0.2}  # forms of the weight, each with its default strength


def q_hawkeye(
    rewards: Tensor,
    where: Tensor | None,
    *,
    form: str = "linear",
    alpha: float | None = None,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """Q-Hawkeye for rewards: prompts whose rewards have a large variance get smaller updates.

    `u = clip(Var(r) / (0.25 (rmax - rmin)^2), 0, 1)` with the population variance (ddof 0); "linear":
    `w = clip(1 - alpha u, 0, 1)`, "exponential": `w = exp(-alpha u)`; `A~_i = A_i w`.

    Args:
        form: "linear" as GCPO adapts it, or "exponential" as the original has it.
        alpha: strength, at least 0; None: 0.6 for "linear", 0.2 for "exponential". At 0 every weight is exactly 1.

    Scores: reward_variance (u), variance_weight
    Paper: Q-Hawkeye (arXiv:2601.22920), adapted in GCPO (arXiv:2605.21801), appendix G
    Per: prompt
    Effect: x [0.4, 1]
    Certainty: (b) the linear form, whose normaliser and alpha are interpretations (c); (a) the exponential form, there
        of the variance of predicted scores
    When: as a comparison. With binary rewards the variance is largest where half of the rollouts are right, and so
        it damps the prompts that are most informative.

    >>> rewards = torch.tensor([[1.0, 5.0, 1.0, 5.0], [3.0, 3.0, 3.0, 4.0]])
    >>> q_hawkeye(rewards, None, form="exponential", reward_range=(1.0, 5.0)).weights[:, 0]
    tensor([0.8187, 0.9907])
    """
    check_grouped("q_hawkeye", rewards=rewards, where=where)
    check_option("q_hawkeye", tuple(STRENGTHS), form=form)
    strength = STRENGTHS[form] if alpha is None else alpha
    check_non_negative("q_hawkeye", alpha=strength)
    low, high = check_reward_range("q_hawkeye", reward_range)
    where = valid(rewards, where)
    deviation = std_over(*masked(rewards, where), ddof=0)
    u = (deviation / (0.5 * (high - low))).square().clamp(max=1.0)
    weight = (1.0 - strength * u).clamp(min=0.0) if form == "linear" else torch.exp(-strength * u)
    scores = {"reward_variance": u, "variance_weight": weight}
    return weighed(rewards, where, weight, scores, mean_one=mean_one, signals={"reward_variance": -1})


def r2vpo(
    rewards: Tensor, ratio_variance: Tensor, where: Tensor | None, *, penalty: float = 1.0, mean_one: bool = False
) -> Outcome:
    """R2VPO per rollout: rollouts whose importance sampling ratios vary more over their tokens get smaller updates.

    `w_i = 1 / (1 + penalty Var_t(rho_it))` with `rho_it` the importance sampling ratio of the current policy to the one
    that sampled, at token t; `A~_i = A_i w_i`.

    Args:
        ratio_variance: population variance (ddof 0) of a rollout's ratios over its tokens; 0 if on-policy. NaN:
            unknown, weight 1; infinite: weight 0.
        penalty: strength, at least 0; at 0 every weight is exactly 1.

    Scores: ratio_variance (`[N, G]`, 0 where unknown)
    Paper: R2VPO (arXiv:2601.03320), adapted in GCPO (arXiv:2605.21801), appendix G
    Per: rollout
    Effect: x [0, 1]; 1 on-policy
    Certainty: (b) the formula; penalty is an interpretation (c)
    When: rollouts are off-policy, e.g. used for several updates. With one update per batch every ratio is 1, and it
        is GRPO.

    >>> ratios = torch.tensor([[[1.0, 1.2, 0.8, 1.0], [1.0, 1.0, 1.0, 1.0]]])
    >>> r2vpo(torch.tensor([[1.0, 0.0]]), ratios.var(-1, correction=0), None).weights  # 1 / 1.02
    tensor([[0.9804, 1.0000]])
    """
    check_grouped("r2vpo", rewards=rewards, ratio_variance=ratio_variance, where=where)
    check_non_negative("r2vpo", penalty=penalty)
    where = valid(rewards, where)
    variance = ratio_variance.detach().double()
    variance = torch.where(where & ~variance.isnan(), variance.clamp(min=0.0), 0.0)
    weight = 1.0 / (1.0 + penalty * variance) if penalty else torch.ones_like(variance)
    return weighed(rewards, where, weight, {"ratio_variance": variance}, mean_one=mean_one)


def gradient_snr(
    rewards: Tensor,
    head_gram: Tensor | None,
    where: Tensor | None,
    block_gram: Tensor | None = None,
    *,
    depth: str = "head",
    alpha: float = 1.0,
    reward_alpha: float = 0.0,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """Scales the update of each group by its estimated share of signal in the squared norm of its mean gradient.

    `A~_i = A_i w`, `w = max(0, 1 - alpha (S^2 / n) / |mean a|^2)` with `a_i = A_i g_i`, the gradients of the output
    head (or of the last block) times their advantages, and `S^2 = sum_i |a_i - mean a|^2 / (n - 1)`. At alpha = 1 the
    second term of w is the estimated share of noise in the squared norm of the group's mean gradient, and w the factor
    of least expected squared error. With `reward_alpha`, w is multiplied by `1 + reward_alpha RD / ln n`. Derived in
    docs/theory.md.

    Args:
        head_gram: `[N, G, G]`, inner products of the rollouts' gradients of the output head; rollouts whose squared
            norm is not finite are left out of the weight. Read with `depth="head"` only.
        block_gram: the same of the last block. Read with `depth="block"` only.
        depth: "head", or "block", whose gradients cost more and follow those of the whole model more closely on the
            embedded policies, not on SmolLM2-135M.
        alpha: strength, at least 0: 1 takes the noise as it is estimated; at 0 every weight is exactly 1.
        reward_alpha: strength of the boost by reward dispersion, at least 0 (GCPO has 0.6); 0: none.

    Scores: signal_share (in [0, 1], w at alpha = 1; 1 without spread of rewards), head_variance or block_variance (of
        the `a_i`, in squared units of a gradient); with reward_alpha also reward_dispersion, reward_weight
    Paper: none, ours; the factor is that of Stein and James 1961, its positive part
    Per: prompt
    Effect: x [0, 1]
    Certainty: (c) ours; the advantages of a group are taken as independent, the gradient of the head or of the block as
        a proxy of all
    When: groups are small relative to the noise of their gradients. Where noise dominates most groups, all updates
        become small: see the mean weight, and mean_one, which keeps the size of the step.

    >>> gram = torch.tensor([[[1.0, -0.8], [-0.8, 1.0]]])  # the advantages have opposite signs, so gradients agree
    >>> gradient_snr(torch.tensor([[2.0, 0.0]]), gram, None).weights
    tensor([[0.8889, 0.8889]])
    """
    gram = gram_at("gradient_snr", depth, head_gram, block_gram)
    check_shapes("gradient_snr", rewards=(rewards, "N G"), **{f"{depth}_gram": (gram, "N G G")}, where=(where, "N G"))
    check_non_negative("gradient_snr", alpha=alpha, reward_alpha=reward_alpha)
    where = valid(rewards, where)
    advantages = standardised(rewards.double(), where)
    scores = {
        "signal_share": gradient_snr_weight(gram, advantages, where),
        f"{depth}_variance": head_gradient_variance(gram, advantages, where),
    }
    weight = gradient_snr_weight(gram, advantages, where, strength=alpha)
    if reward_alpha:
        dispersion = reward_dispersion(rewards.double(), reward_range, where)
        gain = boost(dispersion, group_alpha(reward_alpha, where.sum(-1)))
        weight, scores = weight * gain, scores | {"reward_dispersion": dispersion, "reward_weight": gain}
    return weighed(rewards, where, weight, scores, mean_one=mean_one)
