"""Methods that treat right and wrong rollouts differently: CAPO and EGPO.

Where they are not given `correct`, they read it from binary rewards, see `binary_verdicts`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.checks import (
    check_around_one,
    check_grouped,
    check_non_negative,
    check_option,
    check_positive,
    check_reward_range,
    check_share,
)
from calibrant.errors import CalibrantError
from calibrant.groups import LARGEST_REWARD, NO_SPREAD, RANGE_TOLERANCE, like_input, masked, spread_over, valid
from calibrant.methods.inputs import SOURCES
from calibrant.methods.outcome import BASES, Outcome, in_type_of, replaced

TIE = 1e-6  # the largest difference of rewards that counts as none
BINARY = ((0.0, 1.0), (-1.0, 1.0))  # pairs of (wrong, right) that rewards may be, beside the ends of the reward range


def capo(
    rewards: Tensor,
    mean_logprob: Tensor,
    ref_mean_logprob: Tensor,
    where: Tensor | None,
    correct: Tensor | None = None,
    *,
    tau: float = 0.6,
    ref_high: float | None = 2.5,
    ref_low: float | None = 1.05,
    normalise: str = "sum",
    inverse_tau: bool = True,
    graded: bool = False,
    reward_range: Sequence[float] = (0.0, 2.0),
) -> Outcome:
    """CAPO: the advantage becomes the gradient of a pairwise logistic loss that ranks right answers above wrong ones.

    With `l_i` the mean log-probability of rollout i, for a right one
    `A~_i = (1 / tau) sum_{j wrong} sigmoid(-(l_i - l_j) / tau)`, and for a wrong one
    `A~_j = -(1 / tau) sum_{i right} sigmoid(-(l_i - l_j) / tau)`. Well-ranked pairs contribute little. Then
    `A_i = m_i A~_i`: a right rollout is masked if its perplexity under the reference is above `ref_high`, a wrong one
    if it is below `ref_low`. Masked rollouts stay in the pairs of others.

    Before the mask the advantages of a group sum to 0, and adding a constant to all `l_i` changes nothing.

    Args:
        mean_logprob: `l_i` under the policy that sampled; a rollout without a finite one is in no pair.
        ref_mean_logprob: the same under a frozen reference; one that is not finite masks nothing.
        correct: 1 right, 0 wrong, NaN unknown and in no pair. None: from binary rewards.
        tau: temperature, above 0 (paper: 0.6 for 1.5B parameters, 0.5 for 7B).
        ref_high: the highest perplexity of a right rollout under the reference; None: no such mask.
        ref_low: the lowest perplexity of a wrong one; None: no such mask. Both came from quartiles of the paper's base
            model; take those of your own.
        normalise: "sum" over partners, or divided by the number of rollouts with a verdict in the "group", or by its
            number of "pairs".
        inverse_tau: whether the factor 1 / tau of the derivative is kept.
        graded: compare rewards that are not binary: `A~_i = sum_j (r_i - r_j) sigmoid(-s_ij (l_i - l_j) / tau) / tau`,
            `s_ij = sign(r_i - r_j)`, in units of the reward; the mask goes by the sign of `A~_i`. For rewards 0 and 1
            it is the same.

    Scores: correctness_auc (share of pairs in which the better rollout is the likelier, ties half; 0.5 without pairs),
        logprob_margin (mean of `l_better - l_worse`, nats, 0 without pairs), kept_share (of the rollouts with a pair;
        1 without)
    Paper: CAPO (arXiv:2604.12632)
    Per: rollout
    Effect: replaces the advantage; at most (n - 1) / tau, 25 at 16 rollouts per prompt
    Certainty: (b) formula, mask and defaults; the sum over pairs, the policy of l, partners that are masked and the
        graded form are interpretations (c)
    When: the likelihood of an answer should say whether it is right, e.g. for confidence-weighted votes. Not for
        prompts that are all right or all wrong: they have no pair.

    >>> logprobs = torch.tensor([[-0.5, -0.2, -0.9, -0.1]])
    >>> capo(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), logprobs, logprobs, None).base
    tensor([[ 1.6667,  1.2984, -0.9612, -2.0039]])
    """
    tensors = {"mean_logprob": mean_logprob, "ref_mean_logprob": ref_mean_logprob, "correct": correct}
    check_grouped("capo", rewards=rewards, where=where, **tensors)
    check_option("capo", ("sum", "group", "pairs"), normalise=normalise)
    bounds = {"ref_high": ref_high, "ref_low": ref_low}
    check_positive("capo", tau=tau, **{name: bound for name, bound in bounds.items() if bound is not None})
    where = valid(rewards, where)
    if graded:
        grades = torch.where(where, masked(rewards, where)[0], torch.nan)
    else:
        grades = binary_verdicts("capo", rewards, correct, where, reward_range, ", or graded=True")
    finite = torch.isfinite(mean_logprob)
    likelihood = torch.where(finite, mean_logprob.detach().double(), 0.0).clamp(-LARGEST_REWARD, LARGEST_REWARD)
    grades = torch.where(finite, grades, torch.nan)
    difference, margin = _differences(grades), likelihood[:, :, None] - likelihood[:, None, :]
    pull = difference * torch.sigmoid(-difference.sign() * margin / tau)
    advantages = pull.sum(-1) / _normaliser(normalise, grades, difference)
    advantages = advantages / tau if inverse_tau else advantages
    kept = _kept(advantages, ref_mean_logprob.detach().double(), ref_high, ref_low)
    paired = advantages != 0
    share = (kept & paired).sum(-1) / paired.sum(-1).clamp(min=1).double()
    scores = {**_ranking(difference, margin), "kept_share": torch.where(paired.any(-1), share, 1.0)}
    return replaced(torch.where(kept, advantages, 0.0), scores, rewards)


def _differences(grades: Tensor) -> Tensor:
    """`r_i - r_j`, `[N, G, G]`; 0 where one of them is unknown, and for ties."""
    difference = grades[:, :, None] - grades[:, None, :]
    return torch.where(difference.abs() > TIE, difference, 0.0)


def _normaliser(normalise: str, grades: Tensor, difference: Tensor) -> Tensor | float:
    if normalise == "group":
        return torch.isfinite(grades).sum(-1, keepdim=True).clamp(min=1)
    return (difference > 0).sum((-1, -2))[:, None].clamp(min=1) if normalise == "pairs" else 1.0


def _kept(advantages: Tensor, ref_mean_logprob: Tensor, ref_high: float | None, ref_low: float | None) -> Tensor:
    """Which rollouts are not masked: neither improbable ones that would be pushed up, nor probable ones down."""
    perplexity = torch.exp(-ref_mean_logprob)
    improbable = perplexity > (math.inf if ref_high is None else ref_high)
    probable = perplexity < (-math.inf if ref_low is None else ref_low)
    return ~((advantages > 0) & improbable | (advantages < 0) & probable)


def _ranking(difference: Tensor, margin: Tensor) -> dict[str, Tensor]:
    better = difference > 0
    count = better.sum((-1, -2))
    ranked = torch.where(better, 0.5 * (1.0 + margin.sign()), 0.0).sum((-1, -2)) / count.clamp(min=1)
    gap = torch.where(better, margin, 0.0).sum((-1, -2)) / count.clamp(min=1)
    return {"correctness_auc": torch.where(count > 0, ranked, 0.5), "logprob_margin": gap}


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
    nsr_share: float = 0.5,
    reward_range: Sequence[float] = (0.0, 2.0),
) -> Outcome:
    """EGPO: weights above 1 for certain right rollouts, below 1 for uncertain wrong ones; all-wrong groups get -w.

    With `H_i` the mean negative log-probability per token of rollout i, `H` its mean over the group, and the certainty
    ratio `c_i = H / (H_i + eps)`: `w_i = max(1, clip(c_i, low, high))` if right, `min(1, clip(c_i, low, high))` if
    wrong; `A~_i = A_i w_i`. By design, `A~_i` does not sum to 0 over a group.

    Negative-sample reinforcement: in a group whose rollouts are all wrong and have equal rewards, `A~_i = -w_i`
    instead of 0. This term lowers the likelihood of all that is sampled and has no equilibrium; so if more than
    `max(1, floor(nsr_share N))` of the N groups are all wrong, their advantages are scaled down until their sum is
    that of this many groups (c).

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
        nsr_share: share of the groups, in [0, 1]; if more are all wrong, their advantages are scaled down.

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


def _cap(pushed: Tensor, where: Tensor, share: float) -> float:
    """The factor that limits groups that are all wrong to their share of the groups."""
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


def binary_verdicts(
    caller: str,
    rewards: Tensor,
    correct: Tensor | None,
    where: Tensor,
    reward_range: Sequence[float],
    otherwise: str = "",
) -> Tensor:
    """Whether each rollout is right, `[N, G]` float64: 1 right, 0 wrong, NaN unknown or not counted.

    Read from `correct` (1, 0, not finite where unknown) if it is given, else from binary rewards. Interpretation (c):
    rewards are binary if all that count in the batch are ends of the reward range, or all 0 and 1, or all -1 and 1,
    whichever fits first. Partial credit raises an error, to which `otherwise`, an alternative, is appended.

    >>> rewards = torch.tensor([[2.0, 0.0, torch.nan]])
    >>> binary_verdicts("f", rewards, None, torch.isfinite(rewards), (0.0, 2.0))
    tensor([[1., 0., nan]], dtype=torch.float64)
    """
    low, high = check_reward_range(caller, reward_range)
    if correct is not None:
        correct = torch.where(torch.isfinite(correct) & where, correct.detach().double(), torch.nan)
        odd = correct[(correct != 0) & (correct != 1) & ~correct.isnan()]
        if len(odd):
            raise CalibrantError(f"{caller}: correct has to be 1, 0 or NaN (unknown), got {odd[0].item():g}")
        return correct
    values = rewards.detach().double()
    for wrong, right in ((low, high), *BINARY):
        is_right, is_wrong = _near(values, right, right - wrong), _near(values, wrong, right - wrong)
        if (is_right | is_wrong | ~where).all():
            return torch.where(where, is_right.double(), torch.nan)
    outside = values[where & ~_near(values, low, high - low) & ~_near(values, high, high - low)][0].item()
    raise CalibrantError(
        f"{caller} needs binary rewards or the input 'correct' ({SOURCES['correct']}){otherwise}: a reward of "
        f"{outside:g} is neither end of the reward range [{low:g}, {high:g}]"
    )


def _near(values: Tensor, target: float, width: float) -> Tensor:
    return (values - target).abs() <= RANGE_TOLERANCE * width
