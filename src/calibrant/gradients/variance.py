"""The variance of the gradients of each group, and its parts.

N groups of G rollouts; statistics are float64 on the CPU, results have the type of the advantages. A rollout counts if
its advantage and its gradient are finite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from calibrant.checks import check_option, check_positive, check_shapes
from calibrant.gradients.hooks import hooks_gram
from calibrant.gradients.loop import loop_sums
from calibrant.gradients.model import CALLER, NamePredicate, Options, Rows, batch_rows, passes, select
from calibrant.gradients.plan import Plan, make_plan
from calibrant.groups import like_input, masked
from calibrant.policy.verify import evaluating
from calibrant.signals import moments
from calibrant.statistics.counted import check_count

Statistic = TypeVar("Statistic", Tensor, Tensor | None)


@dataclass(frozen=True, eq=False)
class GradientVariance:
    """The variance of the gradients of each group and its parts.

    `g_i` is the gradient of the log-likelihood of rollout i, `A_i` its advantage; means are over rollouts that count.
    The parts `intra` (within clusters) and `inter` (between clusters) add up to their variance; they are None without
    clusters.
    """

    variance: Tensor  # [N], V(q) = mean_i |A_i g_i - mean_j A_j g_j|^2, at least 0
    mean_norm_squared: Tensor  # [N], |mean_i A_i g_i|^2, the squared norm of the group's update
    score_variance: Tensor  # [N], V with all A_i = 1
    squared_norms: Tensor  # [N, G], |g_i|^2 of all rollouts; 0 if not finite
    where: Tensor  # [N, G] boolean, the rollouts that count
    variance_intra: Tensor | None  # [N], as the next three
    variance_inter: Tensor | None
    score_variance_intra: Tensor | None
    score_variance_inter: Tensor | None
    gram: Tensor | None  # [N, G, G] float64, <g_i, g_j>, 0 for rollouts that do not count; None unless asked for
    fallback: tuple[str, ...]  # names of the parameters that took one backward pass per rollout


def gradient_variance(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    advantages: Tensor,
    *,
    backend: Literal["hooks", "loop"] = "hooks",
    parameters: str | Sequence[str] | NamePredicate | None = None,
    clusters: Tensor | None = None,
    gram: bool = False,
    temperature: float = 1.0,
    reduction: Literal["sum", "mean"] = "sum",
    rows_per_chunk: int | None = None,
) -> GradientVariance:
    """Variance of the advantage-weighted gradients of the rollouts of each group, exactly.

    `V(q) = 1/n sum_i |A_i g_i - 1/n sum_j A_j g_j|^2` with `g_i = grad log pi(y_i | q)`, over the n rollouts that
    count. Clusters split it: `V = sum_k n_k/n V_k + sum_k n_k/n |mu_k - mu|^2`, within and between.

    `backend="hooks"` takes one forward and one backward pass over all rollouts and never stores a gradient;
    `backend="loop"` takes one pass per rollout and works for any model. Hooks fall back to the loop for parameters of
    layers without a rule (other than linear, embedding and normalisation layers, tied or not) and for parameters used
    outside of their layer.

    The model runs in evaluation mode and is restored afterwards, `.grad` included. Positions count from the first
    token of a prompt that is not padding.

    Args:
        model: a causal language model of transformers, or one called as those are.
        batch: tensors of integers with TRL's names, `[N * G, ...]` in group order or `[N, G, ...]`: `prompt_ids` and
            `prompt_mask` (padded on the left), `completion_ids` and `completion_mask` (padded on the right), and
            `tool_mask` if some tokens of completions are not the model's own.
        advantages: `[N, G]`.
        backend: "hooks" or "loop".
        parameters: None, those that require a gradient (of adapters, with LoRA); "all"; names or patterns such as
            `"*.layers.0.*"`; or a function of the name. A shared parameter has several names and is taken once.
        clusters: `[N, G]`, integers; equal numbers in a group are one cluster.
        gram: whether to return `<g_i, g_j>`. With the loop, gram and clusters store G gradients instead of two sums.
        temperature: divides the logits.
        reduction: "sum", the log-likelihood; "mean", its mean over the rollout's tokens.
        rows_per_chunk: rows per forward pass, in whole groups and at least one; one group when None.

    Reference: GCPO, eq. 20 (b) and, without advantages, its split in eq. 3 (b); the split with advantages and
    `reduction="mean"` are ours (c).
    """
    check_option(CALLER, ("hooks", "loop"), backend=backend)
    check_option(CALLER, ("sum", "mean"), reduction=reduction)
    check_positive(CALLER, temperature=temperature)
    check_count(CALLER, rows_per_chunk=1 if rows_per_chunk is None else rows_per_chunk)
    check_shapes(CALLER, advantages=(advantages, "N G"), clusters=(clusters, "N G"))
    rows = batch_rows(batch, advantages)
    options = Options(temperature, reduction, rows_per_chunk, gram or clusters is not None)
    with evaluating(model):
        chosen = select(model, parameters)
        plan = make_plan(model, chosen, rows) if backend == "hooks" else Plan({}, chosen)
        products = _collect(model, plan, rows, advantages, options)
    fallback = tuple(plan.fallback) if backend == "hooks" else ()
    return _result(products, advantages, clusters, gram, fallback)


class _Products(NamedTuple):
    """Inner products of gradients; values of a rollout whose gradient is not finite are not finite either."""

    gram: Tensor  # [N, G, G], `<g_i, g_j>`, without what the loop did not keep
    squared_norms: Tensor  # [N, G], over all parameters
    square_of_update: Tensor  # [N], |sum_i A_i g_i|^2 over the parameters missing in `gram`
    square_of_score: Tensor  # [N], |sum_i g_i|^2 over the same


def _collect(model: nn.Module, plan: Plan, rows: Rows, advantages: Tensor, options: Options) -> _Products:
    """Hooks for the parameters with a rule, the loop for the rest, one or more groups per pass."""
    groups, rollouts = advantages.shape
    products: list[_Products] = []
    for part in passes(groups, rollouts, options.rows_per_chunk):
        chunk = rows.part(slice(part.start * rollouts, part.stop * rollouts))
        gram = hooks_gram(model, plan.layers, chunk, part.stop - part.start, options).cpu()
        for n, weights in enumerate(advantages[part].cpu()):
            group = chunk.part(slice(n * rollouts, (n + 1) * rollouts))
            products.append(_with_fallback(model, plan, group, gram[n], weights, options))
    return _Products(*(torch.cat(values) for values in zip(*products, strict=True)))


def _with_fallback(
    model: nn.Module, plan: Plan, group: Rows, gram: Tensor, advantages: Tensor, options: Options
) -> _Products:
    """Adds the loop's products for the parameters without a rule to those of one group."""
    norms = moments.squared_norms(gram)
    if not plan.fallback:
        return _Products(gram[None], norms[None], torch.zeros(1).double(), torch.zeros(1).double())
    values, where = masked(advantages[None], torch.isfinite(norms)[None])
    weights = torch.cat([values, where.double()])
    sums = loop_sums(model, list(plan.fallback.values()), group, weights, options)
    total = gram if sums.gram is None else gram + sums.gram
    return _Products(total[None], (norms + sums.squared_norms)[None], sums.squares[:1], sums.squares[1:])


def _result(
    products: _Products, advantages: Tensor, clusters: Tensor | None, gram: bool, fallback: tuple[str, ...]
) -> GradientVariance:
    values, finite = masked(advantages.cpu())
    scored = torch.isfinite(products.squared_norms)
    where = finite & scored
    inner, norms = moments.kept(products.gram, where), torch.where(scored, products.squared_norms, 0.0)
    weights, clusters = torch.where(where, values, 0.0), None if clusters is None else clusters.cpu()
    update = weighted_variance(inner, weights, where, clusters, norms, products.square_of_update)
    score = weighted_variance(inner, where.double(), where, clusters, norms, products.square_of_score)

    def given(statistic: Statistic) -> Statistic:
        return statistic if statistic is None else like_input(statistic, advantages).to(advantages.device)

    return GradientVariance(
        variance=given(update.total),
        mean_norm_squared=given(update.mean_norm_squared),
        score_variance=given(score.total),
        squared_norms=given(norms),
        where=where.to(advantages.device),
        variance_intra=given(update.intra),
        variance_inter=given(update.inter),
        score_variance_intra=given(score.intra),
        score_variance_inter=given(score.inter),
        gram=inner.to(advantages.device) if gram else None,
        fallback=fallback,
    )


class WeightedVariance(NamedTuple):
    """The variance of `w_i g_i` in each group, `[N]` each; the shares within and between clusters if there are any."""

    total: Tensor
    mean_norm_squared: Tensor
    intra: Tensor | None
    inter: Tensor | None


def weighted_variance(
    gram: Tensor,
    weights: Tensor,
    where: Tensor,
    clusters: Tensor | None,
    squared_norms: Tensor,
    square_elsewhere: Tensor | float = 0.0,
) -> WeightedVariance:
    """The variance of `w_i g_i` from inner products, all 0 for rollouts that do not count.

    `square_elsewhere` is the part of `|sum_i w_i g_i|^2` over parameters missing in `gram`.
    """
    n = moments.count(where)
    products = moments.weighted(gram, weights)
    square_of_sum = products.sum((-2, -1)) + square_elsewhere
    total = moments.variance(weights.square() * squared_norms, square_of_sum, n)
    inter = None if clusters is None else moments.between_clusters(products, clusters, where)
    intra = None if inter is None else (total - inter).clamp(min=0.0)
    return WeightedVariance(total, (square_of_sum / n**2).clamp(min=0.0), intra, inter)
