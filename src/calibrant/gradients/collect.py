"""Norms and inner products of the gradients of all groups, from hooks where there are rules and a loop for the rest."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from calibrant.gradients.hooks import hooks_gram
from calibrant.gradients.loop import loop_sums
from calibrant.gradients.plan import Plan
from calibrant.gradients.rows import Options, Rows, passes
from calibrant.groups import masked
from calibrant.signals.moments import squared_norms


class Collected(NamedTuple):
    """All float64, on the processor; values of a rollout whose gradient is not finite are not finite either."""

    gram: Tensor  # [N, G, G], inner products, as far as they were kept
    squared_norms: Tensor  # [N, G], over all parameters
    square_of_update: Tensor  # [N], |sum_i A_i g_i|^2 over the parameters that are not in `gram`
    square_of_score: Tensor  # [N], |sum_i g_i|^2 over the same


def collect(model: nn.Module, plan: Plan, rows: Rows, advantages: Tensor, options: Options) -> Collected:
    """One or more groups at a time go through the model."""
    groups, rollouts = advantages.shape
    found: list[Collected] = []
    for part in passes(groups, rollouts, options.rows_per_chunk):
        some = rows.part(slice(part.start * rollouts, part.stop * rollouts))
        gram = hooks_gram(model, plan.layers, some, part.stop - part.start, options).cpu()
        for n, weights in enumerate(advantages[part].cpu()):
            group = some.part(slice(n * rollouts, (n + 1) * rollouts))
            found.append(_with_fallback(model, plan, group, gram[n], weights, options))
    return Collected(*(torch.cat(values) for values in zip(*found, strict=True)))


def _with_fallback(
    model: nn.Module, plan: Plan, group: Rows, gram: Tensor, advantages: Tensor, options: Options
) -> Collected:
    """Adds what the loop finds for the parameters without a rule to the inner products of one group."""
    norms = squared_norms(gram)
    if not plan.fallback:
        return Collected(gram[None], norms[None], torch.zeros(1).double(), torch.zeros(1).double())
    values, where = masked(advantages[None], torch.isfinite(norms)[None])
    weights = torch.cat([values, where.double()])
    sums = loop_sums(model, list(plan.fallback.values()), group, weights, options)
    total = gram if sums.gram is None else gram + sums.gram
    return Collected(total[None], (norms + sums.squared_norms)[None], sums.squares[:1], sums.squares[1:])
