"""Methods that weigh each rollout by the mean entropy of its next-token distributions."""

import torch
from torch import Tensor

from calibrant.checks import check_around_one, check_grouped, check_option, check_positive, check_shapes, check_share
from calibrant.groups import LARGEST_REWARD, NO_SPREAD, mean_over, spread_over, std_over, valid
from calibrant.methods.inputs import missing_input
from calibrant.methods.outcome import Outcome, weighed, weighed_tokens

SMALLEST_MEAN = 1e-6
"""A group whose mean entropy is below this, in nats, was decoded greedily: shares of it mean nothing."""

ROUNDING = 1e-9  # a position at most this far above a whole number counts as that number: 0.28 * 25 is 7


def edge_grpo(
    rewards: Tensor,
    token_entropy: Tensor,
    where: Tensor | None,
    *,
    low: float = 0.1,
    high: float = 10.0,
    mean_one: bool = False,
) -> Outcome:
    """EDGE-GRPO: rollouts generated with less token entropy than their group count more, those with more, less.

    `P_i` is the mean token entropy of rollout i; `P^_i = clip(P_i / mean(P), low, high)`; `A~_i = A_i / P^_i`.

    Args:
        token_entropy: nats; a rollout without a finite one has weight 1 and is out of the mean.
        low: the lowest ratio, above 0 and at most 1; weights are at most `1 / low`.
        high: the highest ratio, at least 1; weights are at least `1 / high`.

    Scores: entropy_ratio (`P^_i`, `[N, G]`)
    Paper: EDGE-GRPO, equations 3, 6 and 7 (arXiv:2507.21848)
    Per: rollout
    Effect: x [0.1, 10]
    Certainty: (b) the formula; (a*) means without padding over the group, as a fork of TRL has them, where the
        released code (a) averages over padding and the batch; the clip, which that code has switched off, and
        weights 1 in groups without entropy are interpretations (c)
    When: certainty should be rewarded when right and penalised when wrong. It amplifies certain rollouts of either
        sign, and does nothing for groups without reward spread.

    >>> edge_grpo(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 3.0]]), None).weights
    tensor([[2.0000, 0.6667]])
    """
    check_grouped("edge_grpo", rewards=rewards, token_entropy=token_entropy, where=where)
    check_positive("edge_grpo", low=low)
    check_around_one("edge_grpo", low, high)
    where = valid(rewards, where)
    entropy, finite = _entropies(token_entropy, where)
    mean = mean_over(entropy, finite)[:, None]
    share = torch.where(finite & (mean >= SMALLEST_MEAN), entropy / mean.clamp(min=SMALLEST_MEAN), 1.0)
    ratio = share.clamp(low, high)
    return weighed(rewards, where, 1.0 / ratio, {"entropy_ratio": ratio}, mean_one=mean_one)


def eg_spo(
    rewards: Tensor,
    token_entropy: Tensor | None,
    where: Tensor | None,
    token_entropies: Tensor | None = None,
    *,
    level: str = "rollout",
    gate: str = "hard",
    quantile: float | None = None,
    phi: float = 0.5,
    mean_one: bool = False,
) -> Outcome:
    """EG-SPO: rollouts, or tokens, that were generated with high entropy count fully, the others less.

    `H_i` is the mean token entropy of rollout i. Gate "hard": `w_i = 1` if `H_i` is at least the quantile of its
    group, else phi. Gate "soft": `w_i = phi + (1 - phi) sigmoid((H_i - mean) / std)`. `A~_i = A_i w_i`. In a group
    whose entropies do not differ, `w_i = 1`. The direction is the opposite of EDGE-GRPO's.

    Level "token" is EG-SPO itself: `w_it = 1` for a token whose entropy is at least the quantile of all tokens of the
    batch, else phi; `A~_it = A_i w_it`. (TRL's `top_entropy_quantile` is phi 0.)

    Args:
        token_entropy: nats; a rollout without a finite one has weight 1 and is out of the statistics. Level "rollout".
        token_entropies: `[N, G, T]`, nats, NaN where a rollout has no token. Level "token".
        level: "rollout", GCPO's adaptation, or "token".
        gate: "hard" or "soft"; tokens have the hard gate.
        quantile: of the group's entropies, or the batch's for tokens, in [0, 1]; read by the hard gate only. None: 0.5,
            and 0.8 for tokens.
        phi: weight of a rollout or token below the gate, in [0, 1]; 1 gives plain GRPO, bit for bit.

    Scores: token_entropy (`H_i`, `[N, G]`, 0 where unknown), for tokens gated_share (`[N, G]`, of those below the gate)
    Paper: EG-SPO (arXiv:2602.03309), adapted in GCPO (arXiv:2605.21801), appendix G
    Per: rollout
    Effect: x [0.5, 1]
    Certainty: (b) that the mean entropy of a rollout gates its advantage, and that in EG-SPO tokens of low entropy have
        an attenuated term; gate, quantile and phi are an interpretation (c)
    When: rollouts with little exploration should count less, e.g. when entropy collapses. It cannot tell exploration
        from confusion, so not for policies that do not know the task yet.

    >>> eg_spo(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.9, 0.4]]), None).weights
    tensor([[0.5000, 1.0000, 1.0000]])
    """
    check_grouped("eg_spo", rewards=rewards, token_entropy=token_entropy, where=where)
    check_option("eg_spo", ("rollout", "token"), level=level)
    check_option("eg_spo", ("hard", "soft"), gate=gate)
    quantile = {"rollout": 0.5, "token": 0.8}[level] if quantile is None else quantile
    check_share("eg_spo", quantile=quantile, phi=phi)
    where = valid(rewards, where)
    if level == "token":
        return _gated_tokens(rewards, token_entropies, where, quantile, phi)
    if token_entropy is None:
        raise missing_input("eg_spo", ["token_entropy"])
    entropy, finite = _entropies(token_entropy, where)
    if gate == "hard":
        below = entropy < _quantile(entropy, finite, quantile)[:, None]
        weight = torch.ones_like(entropy).masked_fill(below, phi)
    else:
        scale = std_over(entropy, finite)[:, None].clamp(min=torch.finfo(torch.float64).tiny)
        weight = phi + (1.0 - phi) * torch.sigmoid((entropy - mean_over(entropy, finite)[:, None]) / scale)
    weight = torch.where(finite & (spread_over(entropy, finite) > NO_SPREAD)[:, None], weight, 1.0)
    scores = {"token_entropy": torch.where(finite, entropy, 0.0)}
    return weighed(rewards, where, weight, scores, mean_one=mean_one)


def _gated_tokens(
    rewards: Tensor, token_entropies: Tensor | None, where: Tensor, quantile: float, phi: float
) -> Outcome:
    if token_entropies is None:
        raise missing_input("eg_spo", ["token_entropies"], " for level='token'")
    check_shapes("eg_spo", rewards=(rewards, "N G"), token_entropies=(token_entropies, "N G T"))
    entropy, tokens = _entropies(token_entropies, where[..., None])
    threshold = _quantile(entropy.view(1, -1), tokens.view(1, -1), quantile)
    below = tokens & (entropy < threshold)
    if not float(spread_over(entropy.view(1, -1), tokens.view(1, -1))) > NO_SPREAD:
        below = torch.zeros_like(tokens)
    count = tokens.sum(-1).clamp(min=1)
    scores = {"token_entropy": torch.where(tokens, entropy, 0.0).sum(-1) / count, "gated_share": below.sum(-1) / count}
    return weighed_tokens(rewards, where, torch.ones_like(entropy).masked_fill(below, phi), scores)


def _entropies(token_entropy: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Entropies in float64, at least 0, and which rollouts have a finite one."""
    finite = where & torch.isfinite(token_entropy)
    return torch.where(finite, token_entropy.detach().double(), 0.0).clamp(0.0, LARGEST_REWARD), finite


def _quantile(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """The smallest counted value of each row that is not below its quantile, `[N]`; inf if nothing counts."""
    ordered = torch.where(mask, values, torch.inf).sort(-1).values
    position = q * (mask.sum(-1, keepdim=True) - 1).double()
    return ordered.gather(-1, (position - ROUNDING).ceil().clamp(min=0.0).long())[:, 0]
