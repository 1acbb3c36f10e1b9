"""Methods with a reward of their own: agreement within the group, or a reference model's confidence in the answer."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.advantages import standardised
from calibrant.checks import (
    check_grouped,
    check_non_negative,
    check_option,
    check_positive,
    check_reward_range,
    check_share,
    is_number,
)
from calibrant.errors import CalibrantError
from calibrant.groups import masked, mean_over, valid
from calibrant.methods.inputs import missing_input
from calibrant.methods.outcome import Outcome, replaced
from calibrant.signals.confidence import same_cluster


def empo(
    clusters: Tensor,
    where: Tensor | None,
    empty: Tensor | None = None,
    *,
    empty_reward: float | None = None,
    gate: str | None = None,
    min_majority: float = 0.0,
    entropy_range: Sequence[float] | None = None,
) -> Outcome:
    """EMPO: no labels; the reward of a rollout is the share of its group that means the same.

    `r_i = n_z(i) / n` with z(i) the cluster of rollout i, then `A_i = (r_i - mean) / (std + 1e-4)`. Task rewards are
    not read, and rollouts without one count.

    Args:
        empty: `[N, G]`, boolean; rollouts without an answer. Each is a cluster of its own, whatever `clusters` says.
        empty_reward: reward of a rollout without an answer. None: as any other, 1 / n (the authors' verl branch);
            their code for mathematics has 0.0, that for free text -0.5. It needs `empty`.
        gate: None; or "all_distinct": all rewards 0 in a group without two answers of one meaning (the authors' code
            for mathematics).
        min_majority: rewards of answers are 0 in a group whose largest cluster has a smaller share (the authors'
            code: 0.2 for free text; 0.25, switched off, in verl); 0: no such gate.
        entropy_range: (lowest, highest) semantic entropy in nats, both excluded, of a group that is trained on (the
            paper's gate, whose values were not found); None: no such gate.

    Scores: consensus_reward (`r_i`, `[N, G]`), semantic_entropy (nats), majority_share (`[N]`)
    Paper: EMPO (arXiv:2504.05812)
    Per: reward
    Effect: replaces the reward by a share of at most 1
    Certainty: (a) the authors' code, whose branches differ; the default is the one that they recommend
    When: there are questions but no references. It rewards agreement, so a wrong answer of the majority is reinforced.

    >>> outcome = empo(torch.tensor([[0, 0, 1, 2]]), None)
    >>> outcome.scores["consensus_reward"], outcome.base
    (tensor([[0.5000, 0.5000, 0.2500, 0.2500]]), tensor([[ 0.8654,  0.8654, -0.8654, -0.8654]]))
    """
    check_grouped("empo", clusters=clusters, where=where, empty=empty)
    check_option("empo", (None, "all_distinct"), gate=gate)
    check_share("empo", min_majority=min_majority)
    if empty_reward is not None and empty is None:
        raise missing_input("empo", ["empty"], " for empty_reward")
    where = torch.ones_like(clusters, dtype=torch.bool) if where is None else where
    blank = torch.zeros_like(where) if empty is None else empty.bool()
    same = _same_meaning(clusters, blank, where)
    share = same.sum(-1) / where.sum(-1, keepdim=True).clamp(min=1).double()
    reward = torch.where((share.amax(-1) < min_majority)[:, None], 0.0, share)
    if empty_reward is not None:
        reward = torch.where(blank & where, _finite(empty_reward), reward)
    if gate == "all_distinct":
        reward = torch.where((same.sum(-1) >= 2).any(-1)[:, None], reward, 0.0)
    entropy = torch.where(where, -share.clamp(min=1e-300).log(), 0.0).sum(-1) / where.sum(-1).clamp(min=1)
    advantages = standardised(reward, where & _inside(entropy, entropy_range)[:, None])
    scores = {"consensus_reward": reward, "semantic_entropy": entropy, "majority_share": share.amax(-1)}
    return replaced(advantages, scores, clusters)


def grpo_care(
    rewards: Tensor,
    answer_confidence: Tensor | None,
    where: Tensor | None,
    total_rewards: Tensor | None = None,
    clusters: Tensor | None = None,
    *,
    form: str = "likelihood",
    bonus: float = 0.5,
    margin: float | None = 0.01,
    upper: float | None = 0.95,
    threshold: float = 0.1,
    reward_range: Sequence[float] = (0.0, 2.0),
) -> Outcome:
    """GRPO-CARE: a bonus for accurate rollouts whose answer is likely under an EMA reference model.

    With `acc_i` the reward scaled from its range to [0, 1], and `c_i = min(answer_confidence_i, upper)`:
    `S = {i: acc_i > threshold and acc_i >= mean(acc)}` in each group; `bonus_i = bonus acc_i (rmax - rmin)` if i is
    in S and `c_i >= mean_S(c) - margin`, else 0; `A_i` is the standardised advantage of `total_rewards_i + bonus_i`.

    Groups that are all right have an advantage too, where GRPO has none. Partial credit counts as it is.

    The GCPO paper describes its row "CARE" otherwise: agreement across sampled responses, pairwise, as a proxy of
    certainty. With form "agreement", c_i is the share of the other rollouts of the group that are in its cluster; no
    model is needed.

    Args:
        answer_confidence: in [0, 1], of the answer's tokens given the rollout's own reasoning under an EMA of the
            policy, e.g. `signals.answer_confidence`; 0 or not finite: no answer, which lowers the mean and gets no
            bonus (c). Read with `form="likelihood"` only.
        total_rewards: what the bonus is added to; None: `rewards`.
        clusters: read with `form="agreement"` only.
        form: "likelihood", the authors'; or "agreement", GCPO's description of it.
        bonus: largest bonus, as a share of the width of the range, at least 0; 0 gives GRPO.
        margin: how far below the mean confidence still counts, at least 0; None: 0.
        upper: confidences above it count as it, in (0, 1]; None: 1.
        threshold: accuracy that is not above it is not accurate, in [0, 1].

    Scores: consistency_bonus (`[N, G]`, in units of the reward), accurate_confidence (`[N]`, `mean_S(c)`; 0 if S is
        empty)
    Paper: GRPO-CARE (arXiv:2506.16141)
    Per: reward
    Effect: adds 0 or up to 0.5 of the reward's range to the reward
    Certainty: (a) the authors' code; the accuracy of partial credit, and answers without confidence, are
        interpretations (c); (b) that GCPO's row is agreement, and (c) that it takes the place of the likelihood
    When: reasoning should support the answer that it leads to. It needs an EMA of the policy and a span of tokens that
        is the answer, and takes the place of the KL term.

    >>> rewards, confidence = torch.tensor([[2.0, 2.0, 0.0, 2.0]]), torch.tensor([[0.99, 0.6, 0.97, 0.7]])
    >>> grpo_care(rewards, confidence, None).scores["consistency_bonus"]  # 0.95 >= mean(0.95, 0.6, 0.7) - 0.01
    tensor([[1., 0., 0., 0.]])
    """
    tensors = {"answer_confidence": answer_confidence, "total_rewards": total_rewards, "clusters": clusters}
    check_grouped("grpo_care", rewards=rewards, where=where, **tensors)
    check_option("grpo_care", ("likelihood", "agreement"), form=form)
    low, high = check_reward_range("grpo_care", reward_range)
    margin, bound = 0.0 if margin is None else margin, 1.0 if upper is None else upper
    check_non_negative("grpo_care", bonus=bonus, margin=margin)
    check_share("grpo_care", threshold=threshold, upper=bound)
    check_positive("grpo_care", upper=bound)
    where = valid(rewards, where)
    accuracy = torch.where(where, ((masked(rewards, where)[0] - low) / (high - low)).clamp(0.0, 1.0), 0.0)
    confidence = _confidence(form, answer_confidence, clusters, where).nan_to_num(0.0, 0.0, 0.0).clamp(0.0, bound)
    accurate = where & (accuracy > threshold) & (accuracy >= mean_over(accuracy, where)[:, None])
    mean = mean_over(torch.where(accurate, confidence, 0.0), accurate)
    rewarded = accurate & (confidence > 0) & (confidence >= mean[:, None] - margin)
    extra = torch.where(rewarded, bonus * accuracy * (high - low), 0.0)
    total = (rewards if total_rewards is None else total_rewards).detach().double()
    scores = {"consistency_bonus": extra, "accurate_confidence": mean}
    return replaced(standardised(total + extra, where), scores, rewards)


def _confidence(form: str, answer_confidence: Tensor | None, clusters: Tensor | None, where: Tensor) -> Tensor:
    """What GRPO-CARE pays for, `[N, G]`: the likelihood of the answer, or how many others agree with it."""
    given = answer_confidence if form == "likelihood" else clusters
    if given is None:
        raise missing_input("grpo_care", ["answer_confidence" if form == "likelihood" else "clusters"])
    if form == "likelihood":
        return given.detach().double()
    others = same_cluster("grpo_care", given, where).sum(-1) - 1
    return others.clamp(min=0) / (where.sum(-1, keepdim=True) - 1).clamp(min=1).double()


def _same_meaning(clusters: Tensor, blank: Tensor, where: Tensor) -> Tensor:
    """`[N, G, G]` boolean: pairs of counted rollouts in one cluster; those without an answer only with themselves."""
    itself = torch.eye(clusters.shape[1], dtype=torch.bool, device=clusters.device)
    answered = ~(blank[:, :, None] | blank[:, None, :])
    return same_cluster("empo", clusters, where) & (answered | itself)


def _inside(entropy: Tensor, bounds: Sequence[float] | None) -> Tensor:
    """Which entropies lie strictly between the bounds, all if there are none."""
    if bounds is None:
        return torch.ones_like(entropy, dtype=torch.bool)
    pair = list(bounds) if isinstance(bounds, Sequence) and not isinstance(bounds, str) else []
    if len(pair) != 2 or not all(map(is_number, pair)) or not pair[0] < pair[1]:
        raise CalibrantError(f"empo: entropy_range has to be (lowest, highest) with lowest < highest, got {bounds!r}")
    return (entropy > pair[0]) & (entropy < pair[1])


def _finite(empty_reward: float) -> float:
    if not is_number(empty_reward) or not math.isfinite(empty_reward):
        raise CalibrantError(f"empo: empty_reward has to be a finite number or None, got {empty_reward!r}")
    return float(empty_reward)
