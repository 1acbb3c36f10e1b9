"""A method that replaces the advantage by the gradient of a ranking loss: right answers should be the likelier ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.checks import check_option, check_positive, check_shapes
from calibrant.groups import LARGEST_REWARD, masked, valid
from calibrant.methods.outcome import Outcome, replaced
from calibrant.methods.verdicts import binary_verdicts

TIE = 1e-6
"""The largest difference of rewards that counts as none."""


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
    `A~_j = -(1 / tau) sum_{i right} sigmoid(-(l_i - l_j) / tau)`. Pairs that are well ranked pull little. Then
    `A_i = m_i A~_i`: a right rollout is left out if the reference finds it too unlikely (perplexity above `ref_high`),
    a wrong one if it finds it too likely (below `ref_low`). Rollouts that are left out remain partners of others.

    Before the mask the advantages of a group sum to 0, and adding a constant to all `l_i` changes nothing.

    Args:
        mean_logprob: `[N, G]`, `l_i` under the policy that sampled; a rollout without a finite one is in no pair.
        ref_mean_logprob: `[N, G]`, the same under a frozen reference; one that is not finite masks nothing.
        correct: `[N, G]`: 1 right, 0 wrong, NaN unknown and in no pair. None: from binary rewards, which are the ends
            of `reward_range`, or 0 and 1, or -1 and 1.
        tau: temperature, above 0 (paper: 0.6 for 1.5B parameters, 0.5 for 7B).
        ref_high: the highest perplexity of a right rollout under the reference; None: no such mask.
        ref_low: the lowest perplexity of a wrong one; None: no such mask. Both came from quartiles of the paper's base
            model; take those of your own.
        normalise: "sum" over partners, or divided by the rollouts of the "group" that are in question, or by its
            number of "pairs".
        inverse_tau: whether the factor 1 / tau of the derivative is kept.
        graded: compare rewards that are not binary: `A~_i = sum_j (r_i - r_j) sigmoid(-s_ij (l_i - l_j) / tau) / tau`,
            `s_ij = sign(r_i - r_j)`, in units of the reward; the mask goes by the sign of `A~_i`. For rewards 0 and 1
            it is the same.
        reward_range: (lowest, highest) task reward, read to tell binary rewards.

    Returns:
        An outcome that replaces the advantage, weights 1, with scores of each group: `correctness_auc` (share of pairs
        in which the better rollout is the likelier, ties half; 0.5 without pairs), `logprob_margin` (mean of
        `l_better - l_worse`, nats, 0 without pairs) and `kept_share` (of the rollouts with a pair; 1 without).

    Raises:
        CalibrantError: the rewards are not binary and neither
            `correct` nor `graded` is given.

    Paper: CAPO (arXiv:2604.12632)
    Per: rollout
    Effect: replaces the advantage; at most (n - 1) / tau, 25 at 16 rollouts per prompt
    Certainty: (b) formula, mask and defaults; the sum over pairs, the policy of l, partners that are masked and the
        graded form are interpretations (c)
    When: the likelihood of an answer should tell whether it is right, e.g. for confidence-weighted votes. Not for
        prompts that are all right or all wrong: they have no pair.

    >>> logprobs = torch.tensor([[-0.5, -0.2, -0.9, -0.1]])
    >>> capo(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), logprobs, logprobs, None).base
    tensor([[ 1.6667,  1.2984, -0.9612, -2.0039]])
    """
    given = {"rewards": rewards, "mean_logprob": mean_logprob, "ref_mean_logprob": ref_mean_logprob, "where": where}
    check_shapes("capo", **{name: (tensor, "N G") for name, tensor in given.items()}, correct=(correct, "N G"))
    check_option("capo", ("sum", "group", "pairs"), normalise=normalise)
    bounds = {"ref_high": ref_high, "ref_low": ref_low}
    check_positive("capo", tau=tau, **{name: bound for name, bound in bounds.items() if bound is not None})
    where = valid(rewards, where)
    if graded:
        grades = torch.where(where, masked(rewards, where)[0], torch.nan)
    else:
        grades = binary_verdicts("capo", rewards, correct, where, reward_range, ", or graded=True")
    known = torch.isfinite(mean_logprob)
    likelihood = torch.where(known, mean_logprob.detach().double(), 0.0).clamp(-LARGEST_REWARD, LARGEST_REWARD)
    grades = torch.where(known, grades, torch.nan)
    difference, margin = _differences(grades), likelihood[:, :, None] - likelihood[:, None, :]
    pull = difference * torch.sigmoid(-difference.sign() * margin / tau)
    advantages = pull.sum(-1) / _normaliser(normalise, grades, difference)
    advantages = advantages / tau if inverse_tau else advantages
    kept = _kept(advantages, ref_mean_logprob.detach().double(), ref_high, ref_low)
    scores = {**_ranking(difference, margin), "kept_share": _share(kept, advantages != 0)}
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
    """Which rollouts the reference leaves in: not the improbable that would be pushed up, nor the probable down."""
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


def _share(kept: Tensor, counted: Tensor) -> Tensor:
    count = counted.sum(-1)
    return torch.where(count > 0, (kept & counted).sum(-1) / count.clamp(min=1).double(), 1.0)
