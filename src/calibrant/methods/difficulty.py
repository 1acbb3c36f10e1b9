"""Methods that weigh a prompt by how often it is solved.

The success rate p of a group is the share of right rollouts by `correct` where that is known, else the mean reward,
scaled from its range to [0, 1] (c).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from calibrant.checks import check_grouped, check_non_negative, check_positive, check_reward_range, check_share
from calibrant.groups import NO_SPREAD, masked, mean_over, spread_over, valid
from calibrant.methods.outcome import Outcome, weighed

FOLLOWED = {"difficulty_weight": 1}  # the score that `strength` ranks groups by


def mgpo(
    rewards: Tensor,
    where: Tensor | None,
    correct: Tensor | None = None,
    *,
    alpha: float = 4.0,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """MGPO: prompts count the more, the nearer their success rate is to one half.

    `w = exp(-alpha KL(p, 1/2))` with `KL(p, 1/2) = ln 2 + p ln p + (1 - p) ln (1 - p)`; `A~_i = A_i w`.

    Args:
        correct: 1 right, 0 wrong, NaN unknown. None: p is read from the rewards.
        alpha: strength, at least 0; 0 gives plain GRPO, bit for bit.

    Scores: success_rate (p), learning_weight (w)
    Paper: MGPO, of VibeThinker (arXiv:2511.06221)
    Per: prompt
    Effect: x [0.0625, 1], 0.59 at success rates of 1/4 and 3/4
    Certainty: (b) the weight; alpha 4 is that of a re-implementation (a*); success rates of partial credit are an
        interpretation (c)
    When: many prompts are nearly always or nearly never solved. The deviation in `A_i` has already scaled their groups
        up; this takes it back, and more.

    >>> mgpo(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), None, reward_range=(0.0, 1.0)).weights[:, 0]
    tensor([1.0000, 0.0625])
    """
    check_grouped("mgpo", rewards=rewards, where=where, correct=correct)
    check_non_negative("mgpo", alpha=alpha)
    where = valid(rewards, where)
    p = success_rate("mgpo", rewards, correct, where, reward_range)
    distance = (torch.special.xlogy(p, 2.0 * p) + torch.special.xlogy(1.0 - p, 2.0 * (1.0 - p))).clamp(min=0.0)
    weight = torch.exp(-alpha * distance)
    scores = {"success_rate": p, "learning_weight": weight}
    return weighed(rewards, where, weight, scores, mean_one=mean_one, signals={"learning_weight": 1})


def ha_dw(
    rewards: Tensor,
    where: Tensor | None,
    correct: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    *,
    scale: float = 1.5,
    alpha: float = 1.0,
    window: int = 10,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """HA-DW: rare successes on hard prompts and rare failures on easy ones count more, the others less.

    With C the mean success rate of the last batches: `w_i = scale exp(alpha s_i |p - C|)`,
    `s_i = -sign(p - C) sign(A_i)`; `A~_i = A_i w_i`. So on a prompt that is solved less often than usual, right
    rollouts gain and wrong ones lose.

    Args:
        correct: 1 right, 0 wrong, NaN unknown. None: p is read from the rewards.
        state: success rates of the last batches; in the first, C is that of the batch itself.
        scale: factor of all weights, above 0.
        alpha: strength, at least 0; with scale 1, 0 gives plain GRPO, bit for bit.
        window: number of batches that C is the mean of, at least 1.

    Scores: success_rate (p), difficulty_anchor (C)
    Paper: Your Group-Relative Advantage Is Biased (arXiv:2601.08521)
    Per: rollout
    Effect: x 0.55 to 4.08; all weights are 1.5 where p is C
    Certainty: (a) the authors' code, which takes the plain mean of 10 batches; the paper describes an anchor whose step
        follows the spread of recent batches (b); alpha, and success rates of partial credit, are interpretations (c)
    When: groups are small and prompts of very different difficulty. The mean weight is about 1.5: lower the learning
        rate, or use mean_one.

    >>> outcome = ha_dw(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]), None, reward_range=(0.0, 1.0))
    >>> outcome.weights  # C = 1/2, |p - C| = 1/4: 1.5 exp(+-0.25)
    tensor([[1.9260, 1.1682, 1.1682, 1.1682],
            [1.1682, 1.1682, 1.1682, 1.9260]])
    """
    check_grouped("ha_dw", rewards=rewards, where=where, correct=correct)
    check_positive("ha_dw", scale=scale, window=window)
    check_non_negative("ha_dw", alpha=alpha)
    where = valid(rewards, where)
    p = success_rate("ha_dw", rewards, correct, where, reward_range)
    history = (state or {}).get("history", p.new_zeros(0)).to(p)
    counted = where.any(-1)
    now = p[counted].mean()[None] if bool(counted.any()) else p.new_zeros(0)
    anchor = (history if len(history) else now).mean() if len(history) + len(now) else p.new_zeros(())
    values, mask = masked(rewards, where)
    deviation = torch.where(mask, values - mean_over(values, mask)[:, None], 0.0)
    deviation = torch.where((spread_over(values, mask) > NO_SPREAD)[:, None], deviation, 0.0)
    gap = (p - anchor)[:, None]
    weight = scale * torch.exp(-alpha * gap.sign() * deviation.sign() * gap.abs())
    scores = {"success_rate": p, "difficulty_anchor": anchor.expand(len(p))}
    outcome = weighed(rewards, where, weight, scores, mean_one=mean_one)
    return outcome._replace(state={"history": torch.cat([history, now])[-int(window) :]})


def dgpo(
    rewards: Tensor,
    where: Tensor | None,
    correct: Tensor | None = None,
    *,
    alpha: float = 1.0,
    temperature: float = 2.0,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """DGPO: advantages in units of the mean absolute deviation, and more weight for harder prompts.

    `A_i = (r_i - mean) / (mean |r - mean| + 1e-4)`, so that the sum of `|A_i|` is n for every prompt;
    `w = V exp(-alpha p / temperature) / sum exp(-alpha p / temperature)` over the V groups of the batch with reward
    spread, others have the weight 1; `A~_i = A_i w`. A group without a right rollout counts as solved, so that it has
    the smallest weight.

    Args:
        correct: 1 right, 0 wrong, NaN unknown. None: p is read from the rewards.
        alpha: strength of the weights, at least 0; at 0 they are exactly 1.
        temperature: of the weights, above 0.

    Scores: success_rate (p), difficulty_weight (w)
    Paper: DGPO, of MathForge (arXiv:2601.20614)
    Per: prompt
    Effect: x 0.61 to 1.65 at most, and 1 in the mean over the groups with spread
    Certainty: (a) the authors' code, but for its rescaling of the loss to the tokens of groups with spread; success
        rates of partial credit are an interpretation (c)
    When: harder prompts should teach as much as those of medium difficulty: with the standard deviation, groups near
        one half have the largest updates.

    >>> outcome = dgpo(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]), None, reward_range=(0.0, 1.0))
    >>> outcome.weights[:, 0], outcome.base
    (tensor([1.1244, 0.8756]), 'mean_deviation')
    """
    check_grouped("dgpo", rewards=rewards, where=where, correct=correct)
    check_positive("dgpo", temperature=temperature)
    check_non_negative("dgpo", alpha=alpha)
    where = valid(rewards, where)
    p = success_rate("dgpo", rewards, correct, where, reward_range)
    spread = spread_over(*masked(rewards, where)) > NO_SPREAD
    ease = torch.where(p > 0, p, 1.0)
    share = torch.exp(-alpha * (ease - ease.amin() if len(ease) else ease) / temperature)
    mean = share[spread].mean() if bool(spread.any()) else share.new_ones(())
    weight = torch.where(spread, share / mean, 1.0)
    scores = {"success_rate": p, "difficulty_weight": weight}
    return weighed(rewards, where, weight, scores, mean_one=mean_one, base="mean_deviation", signals=FOLLOWED)


def codapo(
    rewards: Tensor,
    mean_logprob: Tensor,
    where: Tensor | None,
    correct: Tensor | None = None,
    *,
    alpha: float = 1.0,
    offset: float = 0.1,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """CoDaPO: prompts count the more, the surer the policy is and the nearer their success rate is to one half.

    `w = 1 + alpha (v + offset - 1)` with `v = 4 c p (1 - p)` and the confidence `c = exp(mean l_i)` of the group, `l_i`
    the mean log-probability of rollout i; at alpha 1 `w = v + offset`. `A~_i = A_i w`.

    Args:
        mean_logprob: `l_i`; rollouts without a finite one are out of c, a group without any has weight 1.
        correct: 1 right, 0 wrong, NaN unknown. None: p is read from the rewards.
        alpha: strength, in [0, 1]; 0 gives plain GRPO, bit for bit.
        offset: lowest weight at alpha 1, at least 0; the paper has 0.

    Scores: success_rate (p), group_confidence (c), difficulty_weight (w)
    Paper: CoDaPO (arXiv:2606.07950)
    Per: prompt
    Effect: x [0.1, 1.1]
    Certainty: (a) the authors' code, without its resampling of the prompts with the largest weights; alpha, and
        success rates of partial credit, are interpretations (c)
    When: the policy's likelihoods are informative. It halves most updates: check the learning rate, or use mean_one.

    >>> outcome = codapo(torch.tensor([[1.0, 0.0]]), torch.tensor([[-0.4, -0.4]]), None, reward_range=(0.0, 1.0))
    >>> outcome.weights  # exp(-0.4) + 0.1
    tensor([[0.7703, 0.7703]])
    """
    check_grouped("codapo", rewards=rewards, mean_logprob=mean_logprob, where=where, correct=correct)
    check_share("codapo", alpha=alpha)
    check_non_negative("codapo", offset=offset)
    where = valid(rewards, where)
    p = success_rate("codapo", rewards, correct, where, reward_range)
    known = where & torch.isfinite(mean_logprob)
    likelihood = torch.where(known, mean_logprob.detach().double().clamp(max=0.0), 0.0)
    confidence = torch.exp(likelihood.sum(-1) / known.sum(-1).clamp(min=1))
    weight = 1.0 + alpha * (4.0 * confidence * p * (1.0 - p) + offset - 1.0)
    weight = torch.where(known.any(-1), weight, 1.0)
    scores = {"success_rate": p, "group_confidence": confidence, "difficulty_weight": weight}
    return weighed(rewards, where, weight, scores, mean_one=mean_one, signals=FOLLOWED)


def success_rate(
    caller: str, rewards: Tensor, correct: Tensor | None, where: Tensor, reward_range: Sequence[float]
) -> Tensor:
    """The success rate of each group, `[N]` float64 in [0, 1]; 0 if no rollout counts.

    >>> where = torch.ones(1, 4, dtype=torch.bool)
    >>> success_rate("f", torch.tensor([[2.0, 1.0, 0.0, 1.0]]), None, where, (0.0, 2.0))
    tensor([0.5000], dtype=torch.float64)
    """
    low, high = check_reward_range(caller, reward_range)
    values, mask = masked(rewards, where)
    scaled = torch.where(mask, ((values - low) / (high - low)).clamp(0.0, 1.0), 0.0)
    if correct is None:
        return mean_over(scaled, mask)
    known = mask & torch.isfinite(correct)
    verdicts = torch.where(known, correct.detach().double().clamp(0.0, 1.0), 0.0)
    return torch.where(known.any(-1), mean_over(verdicts, known), mean_over(scaled, mask))
