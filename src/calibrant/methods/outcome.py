"""What a method returns, and the one place where weights multiply advantages."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant import advantages
from calibrant.groups import like_input
from calibrant.weights import mean_one as with_mean_one
from calibrant.weights import running_weights

BASES: dict[str, Callable[..., Tensor]] = {
    "standardised": advantages.standardised,
    "centred": advantages.centred,
    "leave_one_out": advantages.leave_one_out,
    "mean_deviation": advantages.in_mean_deviations,
}
"""Name -> base advantage."""


class Outcome(NamedTuple):
    """What a method returns: weights, and which base advantage they multiply."""

    weights: Tensor  # [N, G] or one per token, [N, G, T]; finite, at least 0
    scores: dict[str, Tensor]  # name -> [N] or [N, G]
    base: str | Tensor = "standardised"  # a name in BASES, or advantages of the method's own, [N, G] or [N, G, T]
    state: dict[str, Tensor] | None = None  # what a method with memory is given at the next step
    replaced: Tensor | None = None  # boolean: where own advantages replace the standardised; None: everywhere
    signals: Mapping[str, int] | None = None  # scores that the weights follow: 1 if larger ones raise them, else -1


class WeightedAdvantages(NamedTuple):
    """What is trained on: `advantages = base * weights`."""

    advantages: Tensor  # in the shape and type of the weights
    weights: Tensor  # [N, G] or [N, G, T]
    scores: dict[str, Tensor]  # name -> [N] or [N, G]
    base: Tensor  # [N, G], or [N, G, T] if the method has advantages per token
    state: dict[str, Tensor] | None = None


Method = Callable[..., Outcome]


def multiply(
    outcome: Outcome, rewards: Tensor, where: Tensor | None = None, bases: Mapping[str, Tensor] | None = None
) -> WeightedAdvantages:
    """Multiplies the base advantage of an outcome by its weights.

    `bases` are base advantages that the caller has, by the names in `BASES`, `[N, G]`; others are those of `rewards`.

    >>> multiply(Outcome(torch.tensor([[2.0, 2.0]]), {}, "centred"), torch.tensor([[1.0, 0.0]])).advantages
    tensor([[ 1., -1.]])
    """
    weights = outcome.weights.detach()
    base = _base(outcome, rewards, where, bases or {}).detach().double()
    factor = base[..., None] if weights.ndim > base.ndim else base
    advantages = like_input(factor * weights.double(), weights)
    return WeightedAdvantages(advantages, weights, outcome.scores, like_input(base, weights), outcome.state)


def strengthened(outcome: Outcome, where: Tensor, strength: float, window: Tensor | None) -> tuple[Outcome, Tensor]:
    """An outcome with weights of mean 1 and the coefficient of variation `strength`, and the next window of signals.

    Signals are the outcome's, per group; where it names none, its weights, per rollout. Groups with fewer than two
    rollouts that count, and other rollouts that do not, have weight 1. See `weights.running_weights`.
    """
    counts = where & (where.sum(-1) >= 2)[:, None]
    if outcome.signals is None:
        weights = torch.ones_like(outcome.weights, dtype=torch.float64)
        new, window = running_weights(outcome.weights[counts][:, None], window, strength)
        weights[counts] = new.to(weights)
    else:
        signals = torch.stack([outcome.scores[name].double() * sign for name, sign in outcome.signals.items()], dim=-1)
        signals[~counts.any(-1)] = torch.nan
        new, window = running_weights(signals, window, strength)
        weights = new.to(outcome.weights.device)[:, None].expand(outcome.weights.shape)
    return outcome._replace(weights=like_input(weights, outcome.weights).contiguous()), window


def _base(outcome: Outcome, rewards: Tensor, where: Tensor | None, bases: Mapping[str, Tensor]) -> Tensor:
    base, mask = outcome.base, outcome.replaced
    if isinstance(base, Tensor) and mask is None:
        return base
    name = base if isinstance(base, str) else "standardised"
    plain = bases[name] if name in bases else BASES[name](rewards, where)
    if not isinstance(base, Tensor) or mask is None:
        return plain
    return torch.where(mask, base, (plain[..., None] if base.ndim > plain.ndim else plain).to(base))


def weighed(
    rewards: Tensor,
    where: Tensor,
    weight: Tensor,
    scores: dict[str, Tensor],
    *,
    mean_one: bool = False,
    base: str = "standardised",
    signals: Mapping[str, int] | None = None,
) -> Outcome:
    """An outcome with weights `[N]` or `[N, G]`, which are 1 in groups with fewer than two scorable rollouts.

    `where` already excludes rollouts without a finite reward; `mean_one` divides by the mean over those that count;
    `signals` as in `Outcome`.
    """
    enough = (where.sum(-1) >= 2)[:, None]
    weight = weight[:, None] if weight.ndim == 1 else weight
    weights = torch.where(enough, weight, 1.0).expand(rewards.shape)
    if mean_one:
        weights = torch.where(enough, with_mean_one(weights, where & enough), 1.0)
    weights, scores = like_input(weights, rewards).contiguous(), in_type_of(rewards, scores)
    return Outcome(weights, scores, base, signals=signals)


def weighed_tokens(rewards: Tensor, where: Tensor, weights: Tensor, scores: dict[str, Tensor]) -> Outcome:
    """An outcome with weights per token, `[N, G, T]`, which are 1 in groups with fewer than two scorable rollouts."""
    enough = (where.sum(-1) >= 2)[:, None, None]
    return Outcome(like_input(torch.where(enough, weights, 1.0), rewards), in_type_of(rewards, scores))


def replaced(advantages: Tensor, scores: dict[str, Tensor], source: Tensor) -> Outcome:
    """An outcome with advantages of the method's own and weights 1, in the type of `source`."""
    advantages = like_input(advantages, source)
    return Outcome(torch.ones_like(advantages), in_type_of(source, scores), advantages)


def in_type_of(source: Tensor, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores in the floating type of `source`, finite."""
    return {name: like_input(score, source) for name, score in scores.items()}
