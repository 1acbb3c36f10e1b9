"""What a method makes of groups."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant import advantages
from calibrant.groups import group_count, like_input
from calibrant.weights import mean_one as with_mean_one

BASES: dict[str, Callable[..., Tensor]] = {
    "standardised": advantages.standardised,
    "centred": advantages.centred,
    "leave_one_out": advantages.leave_one_out,
}
"""Name -> base advantage."""


class Outcome(NamedTuple):
    """What a method makes of groups.

    `advantages = base * weights` where a method weighs. Where it replaces the advantage (`replaced`, or everywhere if
    `base` is None) the advantages are its own. A trainer that has a base of its own, from all its rewards, multiplies
    that by the weights and takes the advantages where they are replaced.
    """

    advantages: Tensor  # [N, G], finite, 0 for rollouts that do not count
    weights: Tensor  # [N, G], finite, at least 0
    scores: dict[str, Tensor]  # name -> [N] or [N, G]
    base: str | None = "standardised"  # the function of calibrant.advantages that is weighed; None: all replaced
    replaced: Tensor | None = None  # [N, G] boolean: where advantages are not base * weights; None: as base says
    state: dict[str, Tensor] | None = None  # what a method with memory wants to be given at the next step


Method = Callable[..., Outcome]


def weighed(
    rewards: Tensor,
    where: Tensor,
    weight: Tensor,
    scores: dict[str, Tensor],
    *,
    mean_one: bool = False,
    base: str = "standardised",
) -> Outcome:
    """A base advantage times weights, which are 1 in groups with fewer than two scorable rollouts.

    Args:
        rewards: `[N, G]`.
        where: `[N, G]`, boolean; which rollouts count, those without a finite reward excluded.
        weight: `[N]`, one a group, or `[N, G]`, float64.
        scores: name -> `[N]` or `[N, G]`.
        mean_one: divide the weights by their mean over the rollouts that count.
        base: a name in `BASES`.
    """
    plain = BASES[base](rewards, where)
    enough = (group_count(rewards, where) >= 2)[:, None]
    weight = weight[:, None] if weight.ndim == 1 else weight
    weights = torch.where(enough, weight, 1.0).expand(plain.shape)
    if mean_one:
        weights = torch.where(enough, with_mean_one(weights, where & enough), 1.0)
    weights = like_input(weights, rewards).contiguous()
    advantages = like_input(plain * weights, rewards)
    return Outcome(advantages, weights, in_type_of(rewards, scores), base)


def replaced(advantages: Tensor, scores: dict[str, Tensor], source: Tensor) -> Outcome:
    """Advantages that are the method's own, with weights 1, in the type of `source`."""
    own = like_input(advantages, source)
    return Outcome(own, torch.ones_like(own), in_type_of(source, scores), None)


def in_type_of(source: Tensor, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores in the floating type of `source`, finite."""
    return {name: like_input(score, source) for name, score in scores.items()}
