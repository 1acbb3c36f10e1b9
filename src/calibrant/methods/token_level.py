"""Methods with a weight or an advantage per token, `[N, G, T]`.

Token inputs are NaN where a rollout has no token. `A_it` is the base advantage of rollout i at token t.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from calibrant.advantages import standardised
from calibrant.checks import check_grouped, check_non_negative, check_option, check_shapes, check_share
from calibrant.errors import CalibrantError
from calibrant.groups import LARGEST_REWARD, valid
from calibrant.methods.outcome import Outcome, in_type_of, weighed_tokens
from calibrant.methods.verdicts import binary_verdicts

SMALLEST_ENTROPY = 1e-8  # nats; keeps the reciprocal of an entropy finite


def clip_cov(
    rewards: Tensor,
    token_logprobs: Tensor,
    where: Tensor | None,
    total_rewards: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    *,
    share: float = 0.0002,
    low: float = 1.0,
    high: float = 5.0,
    seed: int = 0,
) -> Outcome:
    """Clip-Cov: a few tokens that would lower the entropy most have no gradient.

    `cov_it = (A_it - mean(A)) (l_it - mean(l))` with l the log-probability of each token and means over all tokens of
    the batch. Of the tokens with `low < cov_it < high`, `max(1, floor(share * tokens))` are drawn at random: their
    weight is 0, that of all others 1.

    Args:
        token_logprobs: `[N, G, T]`, of the policy that sampled.
        total_rewards: what `A_it` is computed from; None: `rewards`.
        state: the number of batches so far, so that each draws anew.
        share: of the tokens, in [0, 1]; 0 gives plain GRPO, bit for bit.
        low: the smallest covariance, excluded.
        high: the largest covariance, excluded.
        seed: of the draw.

    Scores: clipped_share (`[N, G]`, of the tokens of a rollout), covariance (`[N, G]`, mean over its tokens)
    Paper: The Entropy Mechanism of Reinforcement Learning (arXiv:2505.22617)
    Per: token
    Effect: x 0 for 0.02% of the tokens, 1 for the others
    Certainty: (a) as verl computes it, at the first update of a batch; verl draws anew in each micro-batch and update
    When: entropy collapses early. Entropy then stays higher; watch it (`entropy` in the metrics).

    >>> logprobs = torch.tensor([[[-0.1, -9.0], [-3.0, -3.0]]])
    >>> clip_cov(torch.tensor([[1.0, 0.0]]), logprobs, None).weights  # covariances 2.6 -3.7 -0.5 -0.5
    tensor([[[0., 1.],
             [1., 1.]]])
    """
    shapes = {"rewards": (rewards, "N G"), "token_logprobs": (token_logprobs, "N G T"), "where": (where, "N G")}
    check_shapes("clip_cov", **shapes, total_rewards=(total_rewards, "N G"))
    check_share("clip_cov", share=share)
    if not low < high:
        raise CalibrantError(f"clip_cov: low has to be below high, got {low!r} and {high!r}")
    where = valid(rewards, where)
    tokens = where[..., None] & torch.isfinite(token_logprobs)
    covariance = _covariance(rewards if total_rewards is None else total_rewards, token_logprobs, where, tokens)
    step = (state or {}).get("step", torch.zeros((), dtype=torch.long)).cpu()
    candidates = (tokens & (covariance > low) & (covariance < high)).flatten().nonzero()[:, 0]
    count = max(1, int(share * int(tokens.sum()))) if share else 0
    generator = torch.Generator().manual_seed(int(seed) * 1_000_003 + int(step))
    drawn = candidates[torch.randperm(len(candidates), generator=generator)[:count].to(candidates.device)]
    weights = torch.ones(token_logprobs.shape, dtype=torch.float64, device=rewards.device)
    weights.view(-1)[drawn] = 0.0
    scores = {"clipped_share": 1.0 - _mean_over(weights, tokens, 1.0), "covariance": _mean_over(covariance, tokens)}
    return weighed_tokens(rewards, where, weights, scores)._replace(state={"step": step + 1})


def kl_cov(
    rewards: Tensor,
    token_logprobs: Tensor,
    where: Tensor | None,
    token_log_ratios: Tensor | None = None,
    total_rewards: Tensor | None = None,
    *,
    share: float = 0.0002,
    coefficient: float = 1.0,
) -> Outcome:
    """KL-Cov: the tokens that would lower the entropy most are held near the policy that sampled them.

    With `cov_it` as in `clip_cov`, of the policy that is updated, the `max(1, floor(share * tokens))` tokens with the
    largest covariance have the penalty `coefficient |ln rho_it|`, rho the importance ratio. Its gradient is that of the
    advantage `A_it - coefficient sign(ln rho_it) / rho_it`, which they get.

    At the first update of a batch every ratio is 1, the penalty has no gradient, and this is plain GRPO: it needs
    several updates per batch, and is applied again at each.

    Args:
        token_logprobs: `[N, G, T]`, of the policy that sampled.
        token_log_ratios: `[N, G, T]`, `ln rho_it`; None: 0.
        total_rewards: what `A_it` is computed from; None: `rewards`.
        share: of the tokens, in [0, 1]; 0 gives plain GRPO, bit for bit.
        coefficient: of the penalty, at least 0.

    Scores: held_share (`[N, G]`, of the tokens of a rollout), covariance (`[N, G]`, mean over its tokens)
    Paper: The Entropy Mechanism of Reinforcement Learning (arXiv:2505.22617)
    Per: token
    Effect: another advantage for 0.02% of the tokens
    Certainty: (a) as verl computes it, per batch instead of per micro-batch; verl has no clipping beside it, here the
        loss clips as always
    When: entropy collapses early, and a batch is used for several updates.

    >>> logprobs, ratios = torch.tensor([[[-0.1, -9.0], [-3.0, -3.0]]]), torch.tensor([[[0.5, 0.0], [0.0, 0.0]]])
    >>> kl_cov(torch.tensor([[1.0, 0.0]]), logprobs, None, ratios).base[0, 0, 0]  # 0.707 - exp(-0.5)
    tensor(0.1005)
    """
    shapes = {"rewards": (rewards, "N G"), "token_logprobs": (token_logprobs, "N G T"), "where": (where, "N G")}
    check_shapes("kl_cov", **shapes, token_log_ratios=(token_log_ratios, "N G T"), total_rewards=(total_rewards, "N G"))
    check_share("kl_cov", share=share)
    check_non_negative("kl_cov", coefficient=coefficient)
    where = valid(rewards, where)
    tokens = where[..., None] & torch.isfinite(token_logprobs)
    ratios = torch.zeros_like(token_logprobs) if token_log_ratios is None else token_log_ratios.detach()
    ratios = torch.where(tokens, ratios.double().nan_to_num(0.0, 0.0, 0.0), 0.0).clamp(-20.0, 20.0)
    total = rewards if total_rewards is None else total_rewards
    covariance = _covariance(total, token_logprobs + ratios.to(token_logprobs), where, tokens)
    count = max(1, int(share * int(tokens.sum()))) if share else 0
    ranked = torch.where(tokens, covariance, -torch.inf).flatten()
    held = torch.zeros_like(tokens).flatten()
    held[ranked.topk(min(count, int(tokens.sum()))).indices] = True
    held = held.view_as(tokens) & (where.sum(-1) >= 2)[:, None, None]
    plain = standardised(total, where).double()[..., None]
    base = plain - coefficient * ratios.sign() * torch.exp(-ratios)
    scores = {"held_share": _mean_over(held.double(), tokens), "covariance": _mean_over(covariance, tokens)}
    outcome = weighed_tokens(rewards, where, torch.ones_like(covariance), scores)
    return outcome._replace(base=torch.where(held, base, 0.0).to(outcome.weights), replaced=held)


def gtpo(
    rewards: Tensor,
    token_entropies: Tensor,
    where: Tensor | None,
    correct: Tensor | None = None,
    *,
    alpha: float = 0.1,
    form: str = "reward",
    normalise: str = "separate",
    reward_range: Sequence[float] = (0.0, 2.0),
) -> Outcome:
    """GTPO: the reward of a rollout is shared out to its tokens by their entropy.

    At each position t, `d_t` right rollouts of the group still have a token, and token it of one of them has the share
    `h_it = d_t H_it / sum_k H_kt`; wrong ones have that of the reciprocal entropies, `h_it = d_t (1/H_it) / sum_k
    (1/H_kt)`. Token rewards are `1 + alpha h_it` of right and `-(1 + alpha h_it)` of wrong rollouts, and the advantage
    is `(reward - mean) / (std + 1e-4)` over the tokens of the right and of the wrong rollouts separately, as
    implementations of the paper's later versions have it.

    So right rollouts are not pushed up as a whole, only their uncertain tokens against their certain ones. With
    `normalise="joint"` (c), mean and std are over all tokens of the group, and they are. In one run each of 20 steps on
    the demo the reward went from 1.12 to 1.09 with "separate" and from 1.16 to 1.47 with "joint". With `form="weight"`,
    `A~_it = A_i (1 + alpha (h_it - 1))`.

    Groups that are all right, or all wrong, have an advantage too: their tokens differ.

    Args:
        token_entropies: `[N, G, T]`, nats.
        correct: 1 right, 0 wrong, NaN unknown, which has advantage 0 (weight 1). None: from binary rewards.
        alpha: strength, at least 0; with form "weight" in [0, 1], and 0 gives plain GRPO, bit for bit.
        form: "reward" or "weight".
        normalise: "separate" or "joint", read with form "reward" only.

    Scores: entropy_share (`[N, G]`, mean of `h_it` over the tokens of a rollout, 0 where unknown)
    Paper: GTPO and GRPO-S (arXiv:2508.04349); another paper of the name GTPO is 2508.03772
    Per: token
    Effect: replaces the advantage; with form "weight" x 0.9 and more
    Certainty: (a*) equations 3, 5 and 6 as two independent implementations have them, separately normalised, alpha 0.1
        of one of them; per group, unbiased deviation, 1e-4, the joint normalisation and the form "weight" are
        interpretations (c)
    When: long reasoning in which a few uncertain tokens decide. For anything else try `normalise="joint"` or form
        "weight" first.

    >>> entropies = torch.tensor([[[1.0, 1.0], [3.0, torch.nan]]])
    >>> gtpo(torch.tensor([[1.0, 1.0]]), entropies, None, alpha=0.5, form="weight").weights
    tensor([[[0.7500, 1.0000],
             [1.2500, 1.0000]]])
    """
    check_grouped("gtpo", rewards=rewards, where=where, correct=correct)
    check_shapes("gtpo", rewards=(rewards, "N G"), token_entropies=(token_entropies, "N G T"))
    check_option("gtpo", ("reward", "weight"), form=form)
    check_option("gtpo", ("joint", "separate"), normalise=normalise)
    check_non_negative("gtpo", alpha=alpha)
    where = valid(rewards, where)
    right = binary_verdicts("gtpo", rewards, correct, where, reward_range)
    entropy = token_entropies.detach().double()
    tokens = torch.isfinite(entropy) & torch.isfinite(right)[..., None]
    entropy = torch.where(tokens, entropy, 0.0).clamp(SMALLEST_ENTROPY, LARGEST_REWARD)
    good, bad = (tokens & (right == verdict)[..., None] for verdict in (1, 0))
    share = torch.where(good, _of_position(entropy, good), _of_position(1.0 / entropy, bad))
    scores = {"entropy_share": _mean_over(share, tokens)}
    if form == "weight":
        check_share("gtpo", alpha=alpha)
        return weighed_tokens(rewards, where, torch.where(tokens, 1.0 + alpha * (share - 1.0), 1.0), scores)
    reward = torch.where(good, 1.0, -1.0) * (1.0 + alpha * share)
    if normalise == "joint":
        advantages = _over_tokens(reward, tokens)
    else:
        advantages = torch.where(good, _over_tokens(reward, good), _over_tokens(reward, bad))
    enough = tokens & (where.sum(-1) >= 2)[:, None, None]
    outcome = weighed_tokens(rewards, where, torch.ones_like(share), scores)
    return outcome._replace(base=in_type_of(rewards, {"base": torch.where(enough, advantages, 0.0)})["base"])


def _covariance(rewards: Tensor, logprobs: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
    """`(A_it - mean(A)) (l_it - mean(l))`, `[N, G, T]` float64, means over all tokens of the batch; 0 elsewhere."""
    count = tokens.sum().clamp(min=1)
    advantages = standardised(rewards, where).double()[..., None].expand(tokens.shape)
    values = torch.where(tokens, logprobs.detach().double(), 0.0).clamp(-LARGEST_REWARD, LARGEST_REWARD)
    mean, mean_advantage = values.sum() / count, torch.where(tokens, advantages, 0.0).sum() / count
    return torch.where(tokens, (advantages - mean_advantage) * (values - mean), 0.0)


def _of_position(values: Tensor, mask: Tensor) -> Tensor:
    """`d_t v_it / sum_k v_kt` over the d_t rollouts of the group that count at position t; 0 elsewhere."""
    counted = torch.where(mask, values, 0.0)
    total = counted.sum(1, keepdim=True)
    return torch.where(mask, counted / torch.where(total > 0, total, 1.0) * mask.sum(1, keepdim=True), 0.0)


def _over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Values standardised over the tokens of each group that count; 0 elsewhere and without spread."""
    flat, counted = values.flatten(1), mask.flatten(1)
    return standardised(torch.where(counted, flat, 0.0), counted).view_as(values)


def _mean_over(values: Tensor, tokens: Tensor, none: float = 0.0) -> Tensor:
    """The mean of each rollout over its tokens, `[N, G]`; `none` for a rollout without."""
    count = tokens.sum(-1)
    mean = torch.where(tokens, values, 0.0).sum(-1) / count.clamp(min=1)
    return torch.where(count > 0, mean, none)
