"""CAPO: advantages from pairs of a right and a wrong rollout."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from calibrant.checks import check_grouped, check_option, check_positive
from calibrant.groups import LARGEST_REWARD, masked, valid
from calibrant.methods.outcome import Outcome, replaced
from calibrant.methods.verdicts import binary_verdicts

TIE = 1e-6  # the largest difference of rewards that counts as none


def capo(
    rewards: Tensor,
    mean_logprob: Tensor,
    ref_mean_logprob: Tensor,
    where: Tensor | None,
    correct: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    *,
    tau: float = 0.6,
    ref_high: float | str | None = "auto",
    ref_low: float | str | None = "auto",
    bound_rollouts: int = 1024,
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
        state: perplexities that the automatic bounds are measured from, kept until there are enough.
        ref_high: the highest perplexity of a right rollout under the reference; "auto": the upper quartile of the right
            rollouts at the start of a run; None: no such mask. The paper's base model gave it 2.5.
        ref_low: the lowest perplexity of a wrong one; "auto": the lower quartile of the wrong ones at the start; None:
            no such mask. The paper's base model gave it 1.05.
        bound_rollouts: number of rollouts at the start of a run, in whole batches, that automatic bounds are measured
            from (c); the bounds are fixed from then on.
        normalise: "sum" over partners, or divided by the number of rollouts with a verdict in the "group", or by its
            number of "pairs".
        inverse_tau: whether the factor 1 / tau of the derivative is kept.
        graded: compare rewards that are not binary: `A~_i = sum_j (r_i - r_j) sigmoid(-s_ij (l_i - l_j) / tau) / tau`,
            `s_ij = sign(r_i - r_j)`, in units of the reward; the mask goes by the sign of `A~_i`. For rewards 0 and 1
            it is the same.

    Scores: correctness_auc (share of pairs in which the better rollout is the likelier, ties half; 0.5 without pairs),
        logprob_margin (mean of `l_better - l_worse`, nats, 0 without pairs), kept_share (of the rollouts with a pair;
        1 without), ref_high, ref_low (the bounds; 0 where there is none)
    Paper: CAPO (arXiv:2604.12632)
    Per: rollout
    Effect: replaces the advantage; at most (n - 1) / tau, 25 at 16 rollouts per prompt
    Certainty: (b) formula, mask, tau, and bounds from quartiles of the base model; which quartiles, the rollouts that
        they are measured from, the sum over pairs, the policy of l, partners that are masked and the graded form are
        interpretations (c)
    When: the likelihood of an answer should say whether it is right, e.g. for confidence-weighted votes. Not for
        prompts that are all right or all wrong: they have no pair.

    >>> logprobs = torch.tensor([[-0.5, -0.2, -0.9, -0.1]])
    >>> capo(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), logprobs, logprobs, None, ref_high=2.5, ref_low=1.05).base
    tensor([[ 1.6667,  1.2984, -0.9612, -2.0039]])
    """
    tensors = {"mean_logprob": mean_logprob, "ref_mean_logprob": ref_mean_logprob, "correct": correct}
    check_grouped("capo", rewards=rewards, where=where, **tensors)
    check_option("capo", ("sum", "group", "pairs"), normalise=normalise)
    check_positive("capo", tau=tau, bound_rollouts=bound_rollouts)
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
    perplexity = torch.exp(-ref_mean_logprob.detach().double())
    side = advantages.sign() if graded else torch.where(torch.isfinite(grades), 2.0 * grades - 1.0, 0.0)
    seen = _seen(state, perplexity, side, bound_rollouts)
    high = _bound("ref_high", ref_high, seen["right_perplexity"], 0.75, math.inf)
    low = _bound("ref_low", ref_low, seen["wrong_perplexity"], 0.25, 0.0)
    kept = ~((advantages > 0) & (perplexity > high) | (advantages < 0) & (perplexity < low))
    paired = advantages != 0
    share = (kept & paired).sum(-1) / paired.sum(-1).clamp(min=1).double()
    scores = {**_ranking(difference, margin), "kept_share": torch.where(paired.any(-1), share, 1.0)}
    bounds = {"ref_high": high if math.isfinite(high) else 0.0, "ref_low": low}
    scores |= {name: torch.full_like(share, bound) for name, bound in bounds.items()}
    outcome = replaced(torch.where(kept, advantages, 0.0), scores, rewards)
    return outcome._replace(state=seen if "auto" in (ref_high, ref_low) else None)


def _differences(grades: Tensor) -> Tensor:
    """`r_i - r_j`, `[N, G, G]`; 0 where one of them is unknown, and for ties."""
    difference = grades[:, :, None] - grades[:, None, :]
    return torch.where(difference.abs() > TIE, difference, 0.0)


def _normaliser(normalise: str, grades: Tensor, difference: Tensor) -> Tensor | float:
    if normalise == "group":
        return torch.isfinite(grades).sum(-1, keepdim=True).clamp(min=1)
    return (difference > 0).sum((-1, -2))[:, None].clamp(min=1) if normalise == "pairs" else 1.0


def _seen(state: Mapping[str, Tensor] | None, perplexity: Tensor, side: Tensor, enough: int) -> dict[str, Tensor]:
    """Perplexities of right and wrong rollouts at the start of a run; this batch's too while there are not enough."""
    none = perplexity.new_zeros(0)
    seen = {name: (state or {}).get(name, none) for name in ("right_perplexity", "wrong_perplexity")}
    if sum(map(len, seen.values())) >= enough:
        return seen
    finite = torch.isfinite(perplexity)
    now = {"right_perplexity": perplexity[finite & (side > 0)], "wrong_perplexity": perplexity[finite & (side < 0)]}
    return {name: torch.cat([seen[name].to(x), x]) for name, x in now.items()}


def _bound(name: str, bound: float | str | None, seen: Tensor, share: float, none: float) -> float:
    """A bound of the mask: a quantile of the perplexities that were seen if it is automatic."""
    if bound is None or (bound == "auto" and not len(seen)):
        return none
    if isinstance(bound, str):
        check_option("capo", ("auto",), **{name: bound})
        return float(seen.quantile(share))
    check_positive("capo", **{name: bound})
    return float(bound)


def _ranking(difference: Tensor, margin: Tensor) -> dict[str, Tensor]:
    better = difference > 0
    count = better.sum((-1, -2))
    ranked = torch.where(better, 0.5 * (1.0 + margin.sign()), 0.0).sum((-1, -2)) / count.clamp(min=1)
    gap = torch.where(better, margin, 0.0).sum((-1, -2)) / count.clamp(min=1)
    return {"correctness_auc": torch.where(count > 0, ranked, 0.5), "logprob_margin": gap}
