"""Entropies of the answers of a group: over tokens, over samples, over meanings. All are uncertainties, in nats.

Excluded rollouts may have any values, and n counts the rest. A log-likelihood that is not finite excludes its rollout
too; an empty completion has none (see `confidence.scored`).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.special import entr

from calibrant.checks import check_option, check_positive, check_shapes, check_share
from calibrant.errors import CalibrantError
from calibrant.groups import like_input
from calibrant.signals.confidence import same_cluster, scored, token_mean

CONTRADICTION, NEUTRAL, ENTAILMENT = 0, 1, 2
"""The order of the labels in the last axis of entailment probabilities. Models differ: sort by their `id2label`."""

SAME_MEANING = 2.0  # the weight of a link between two answers that entail each other
LARGEST = 1e100  # log-likelihoods and similarities beyond it count as it, so that sums and products of them are finite
ROUNDING = 1e-12  # values that are not larger than this count as 0: groups of one meaning are then ties in a ranking


def semantic_entropy(
    clusters: Tensor, log_mass: Tensor | None = None, where: Tensor | None = None, *, estimator: str = "rao"
) -> Tensor:
    """Entropy of the distribution of answers over meanings: an uncertainty.

    Counted (no `log_mass`): `p_i = 1 / n`. Likelihood-weighted: `p_i = exp(l_i) / sum_j exp(l_j)`, a softmax over
    the group. Then `P_k = sum_{i in k} p_i`; 0 for one meaning, and with K <= n clusters

    * `"rao"`: `SE = -sum_k P_k ln P_k`, Shannon's entropy with one term per cluster, in [0, ln K].
    * `"mc"`: `SE = -(1/K) sum_k ln P_k`, each cluster with equal weight. It is at least ln K; counted it is at most
      ln n, likelihood-weighted it has NO upper bound (P = [0.99, 0.01] gives 2.31 > ln 2). Clip it before it becomes
      a weight.

    Args:
        log_mass: `[..., N, G]`, `l_i`, length-normalised log-likelihoods as of `confidence.mean_logprob`; summed ones
            favour short answers strongly.
        estimator: "rao" or "mc".

    Reference: counted and "rao": Kuhn, Gal and Farquhar's code, cluster assignment entropy and Rao's predictive
    entropy over clusters (a); SEED-GRPO's released code as readers describe it (a*). "mc": SEED-GRPO, equation 5 (b),
    with masses that are normalised over the group (c).

    >>> semantic_entropy(torch.tensor([[0, 0, 1, 2]]))  # (1/2) ln 2 + (1/2) ln 4
    tensor([1.0397])
    >>> log_mass = torch.tensor([[0.125, 0.125, 0.75]]).log()
    >>> semantic_entropy(torch.tensor([[0, 0, 1]]), log_mass)  # (1/4) ln 4 + (3/4) ln (4/3)
    tensor([0.5623])
    """
    shapes = {"clusters": (clusters, "... N G"), "log_mass": (log_mass, "... N G"), "where": (where, "... N G")}
    check_shapes("semantic_entropy", **shapes)
    check_option("semantic_entropy", ("rao", "mc"), estimator=estimator)
    mask = _counted(clusters, where, log_mass)
    same = same_cluster("semantic_entropy", clusters, mask)
    mass, of_cluster = _log_masses(same, log_mass, mask)
    one_each = torch.where(mask, 1.0 / same.sum(-1).clamp(min=1).double(), 0.0)
    modes = one_each.sum(-1).round()
    if estimator == "rao":
        entropy = -(mass.exp() * of_cluster).sum(-1)
        entropy = torch.minimum(entropy, modes.clamp(min=1.0).log())
    else:
        entropy = -(one_each * of_cluster).sum(-1) / modes.clamp(min=1.0)
    return like_input(_without_rounding(entropy), clusters if log_mass is None else log_mass)


def predictive_entropy(logprobs: Tensor, where: Tensor | None = None) -> Tensor:
    """Monte Carlo estimate of the entropy of the answers as texts, whatever they mean: an uncertainty.

    `PE = -(1/n) sum_i l_i`, at least 0 for log-likelihoods; 0 if no rollout counts. With summed log-likelihoods
    `[..., N, G]` it estimates, without bias at temperature 1, the entropy of the policy's distribution over sequences,
    in nats per sequence; with length-normalised ones (`confidence.mean_logprob`, as in the reference) it is the mean
    negative log-likelihood, in nats per token.

    The GCPO paper (arXiv:2605.21801, section 2.1) calls something else predictive entropy: `-sum_k q_k ln q_k` over
    the masses q_k of groups of equal predictions. That is `semantic_entropy` with clusters of equal predictions.

    Reference: Kuhn, Gal and Farquhar's code, regular entropy (a).

    >>> predictive_entropy(torch.tensor([[-0.5, -1.0, -3.0, torch.nan]]))
    tensor([1.5000])
    """
    check_shapes("predictive_entropy", logprobs=(logprobs, "... N G"), where=(where, "... N G"))
    mask = _counted(logprobs, where, logprobs)
    values = torch.where(mask, -logprobs.detach().double().clamp(-LARGEST, LARGEST), 0.0)
    return like_input(values.sum(-1) / mask.sum(-1).clamp(min=1), logprobs)


def token_entropy(entropies: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy of the next-token distributions of each rollout: an uncertainty.

    `H_i = sum_t mask_it H_it / sum_t mask_it`, with `H_it` (`entropies`, `[..., N, G, T]`) the entropy over the whole
    vocabulary of V, not the negative log-probability of the sampled token: in [0, ln V]. It is 0 where
    `confidence.scored(entropies, mask)` is False (c): there the entropy is unknown, not 0.

    Reference: EDGE-GRPO, equation 3 (b); its released code averages over padding too (a), which we do not.

    >>> token_entropy(torch.tensor([[[0.2, 0.4, 9.0], [0.6, 0.6, 0.6]]]), torch.tensor([[[1, 1, 0], [1, 1, 1]]]))
    tensor([[0.3000, 0.6000]])
    """
    check_shapes("token_entropy", entropies=(entropies, "... N G T"), mask=(mask, "... N G T"))
    return like_input(token_mean("token_entropy", entropies, mask, 0.0), entropies)


def group_token_entropy(entropies: Tensor, mask: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean token entropy of the rollouts of each group: an uncertainty.

    `H = (1/n) sum_i H_i` with `H_i` as in `token_entropy`: each rollout has equal weight, however long it is; 0 if no
    rollout counts. n counts the rollouts of `where` that are scored.

    Reference: the group mean that normalises EDGE-GRPO's advantage (b).

    >>> entropies = torch.tensor([[[0.2, 0.4, 9.0], [0.6, 0.6, 0.6], [9.0, 9.0, 9.0]]])
    >>> group_token_entropy(entropies, torch.tensor([[[1, 1, 0], [1, 1, 1], [0, 0, 0]]]))  # (0.3 + 0.6) / 2
    tensor([0.4500])
    """
    shapes = {"entropies": (entropies, "... N G T"), "mask": (mask, "... N G T"), "where": (where, "... N G")}
    check_shapes("group_token_entropy", **shapes)
    means = token_mean("group_token_entropy", entropies, mask, 0.0)
    counts = scored(entropies, mask) if where is None else scored(entropies, mask) & where
    return like_input(torch.where(counts, means, 0.0).sum(-1) / counts.sum(-1).clamp(min=1), entropies)


def kernel_language_entropy(
    entailment: Tensor,
    kernel: str = "heat",
    where: Tensor | None = None,
    *,
    t: float | None = None,
    kappa: float = 1.0,
    nu: float = 1.0,
    clusters: Tensor | None = None,
    log_mass: Tensor | None = None,
    alpha: float = 0.5,
    rescale: bool = False,
) -> Tensor:
    """Von Neumann entropy of a kernel over the graph of answers that entail each other: an uncertainty.

    `s_ij = e_ij + (1 - e_ij - c_ij) / 2`: entailment counts 1, neutral 1/2, contradiction 0; `W_ij = s_ij + s_ji`
    without loops, in [0, 2]; `L = diag(W 1) - W`.

    * `"heat"`: `K = exp(-t L)`. A complete graph of weight w decays by `exp(-t n w)`: by default `t = 0.3 * 10 / n`,
      so that G does not set the decay, and n = 10 has the paper's t = 0.3 (c). A number fixes t for all n.
    * `"matern"`: `K = ((2 nu / kappa^2) I + L)^(-nu)`.

    `K_ij <- K_ij / sqrt(K_ii K_jj) / n` has trace 1; `VNE = -sum lambda ln lambda` over its eigenvalues.

    With clusters, `K` is mixed with semantic entropy: `alpha K + (1 - alpha) B`, where `B` has the block `P_k / n_k`
    for each cluster, so that `VNE(B)` is `semantic_entropy(clusters, log_mass)`.

    Answers that all entail each other do not give 0 but, with g the ratio of the kernel at the eigenvalues 2n and 0,
    `V_same`, the entropy of `1 / (1 + (n-1) g)` once and `g / (1 + (n-1) g)` n - 1 times (mixed: with one cluster).
    As a share of ln n that is 0.54 at n = 4 and 0.004 at n = 16 with t = 0.3, and 0.04 and 0.09 by default. `rescale`
    gives `u = clip((VNE - V_same) / (ln n - V_same), 0, 1)`, which is 0 for every n and fit for a weight (c).

    Args:
        entailment: `[N, G, G, 3]`, probabilities of (contradiction, neutral, entailment) in this order, premise i and
            hypothesis j; or `[N, G, G]`, scores `s_ij` in [0, 1]. The diagonal is not read. A score that is not
            finite is no link (c): give NaN to empty answers.
        t, kappa, nu: time of the heat kernel, length scale and smoothness of the Matern kernel; above 0.
        clusters, log_mass: `[N, G]`, as in `semantic_entropy`, to mix with it.
        alpha: the share of the kernel in the mixture, in [0, 1].

    Returns:
        `[N]` nats in [0, ln n], or u in [0, 1]; 0 with fewer than two rollouts.

    Reference: Nikitin et al., Kernel Language Entropy, their code (a); the probabilities as weights: lm-polygraph (a).

    >>> apart, neutral, same = torch.eye(3)[:, None, None].expand(3, 4, 4, 3)
    >>> kernel_language_entropy(torch.stack([apart, neutral, same]), t=0.3)  # ln 4, and between
    tensor([1.3863, 1.2133, 0.7541])
    >>> kernel_language_entropy(torch.stack([apart, same]), rescale=True)
    tensor([1., 0.])
    """
    caller, letters = "kernel_language_entropy", "N G G L" if getattr(entailment, "ndim", 3) == 4 else "N G G"
    masses = {"clusters": (clusters, "N G"), "log_mass": (log_mass, "N G")}
    check_shapes(caller, entailment=(entailment, letters), where=(where, "N G"), **masses)
    check_labels(caller, entailment)
    check_option(caller, ("heat", "matern"), kernel=kernel)
    check_share(caller, alpha=alpha)
    check_positive(caller, t=1.0 if t is None else t, kappa=kappa, nu=nu)
    rollouts = entailment.flatten(2)[..., 0]
    mask = _counted(rollouts, where, None if clusters is None else log_mass)
    count = mask.sum(-1).double()
    times = 0.3 * 10 / count.clamp(min=1) if t is None else torch.full_like(count, t)
    decay = partial(_decay, kernel=kernel, t=times[:, None], kappa=kappa, nu=nu)
    matrix, share = _unit_trace_kernel(_links(entailment, mask), decay, mask), 1.0
    if clusters is not None:
        share = alpha
        matrix = alpha * matrix + (1.0 - alpha) * _blocks(clusters, log_mass, mask)
    entropy = entr(torch.linalg.eigvalsh(matrix).clamp(min=0.0)).sum(-1)
    highest = count.clamp(min=1).log()
    if rescale:
        entropy = _share_of_range(entropy, _entropy_of_one_meaning(count, decay, share), highest)
    else:
        entropy = torch.minimum(_without_rounding(entropy), highest)
    return like_input(torch.where(count >= 2, entropy, 0.0), entailment)


def semantic_nearest_neighbour_entropy(
    similarity: Tensor,
    tau: float = 1.0,
    weights: Tensor | None = None,
    where: Tensor | None = None,
    *,
    rescale: bool = False,
) -> Tensor:
    """How little each answer resembles the others, its soft nearest neighbours: an uncertainty.

    `SNNE = -(1/n) sum_i w_i ln sum_j exp(S_ij / tau)`, with j = i included; `w_i = 1`, or with weights
    `w_i = weights_i / mean(weights)`.

    For similarities in [0, 1] with `S_ii = 1` it lies in [`-ln n - 1/tau`, `-ln(exp(1/tau) + n - 1)`], from all alike
    to all apart: always negative, and lower for larger groups. `rescale` gives its position in that range,
    `u = clip((SNNE - lowest) / (highest - lowest), 0, 1)`, fit for a weight (c).

    Args:
        similarity: `[..., N, G, G]`, e.g. ROUGE-L, cosine, or entailment averaged over both directions; the diagonal
            is read. A value that is not finite counts as 0 (c).
        tau: temperature, above 0; the reference searches 0.1, 1, 10, 100.
        weights: `[..., N, G]`, e.g. likelihoods `exp(mean_logprob)`; scaled to mean 1 here, negative ones count as 0,
            all 0 as equal, and one that is not finite excludes its rollout (c).

    Returns:
        `[..., N]` nats, or [0, 1]. One rollout gives the formula's `-S_11 / tau`, the lowest of its range, or u = 0;
        none gives 0.

    Reference: SNNE (2506.00245), the released code, WSNNE with weights (a).

    >>> similarity = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    >>> semantic_nearest_neighbour_entropy(similarity)  # -ln(e + 1), -ln(2 e)
    tensor([-1.3133, -1.6931])
    >>> semantic_nearest_neighbour_entropy(similarity, rescale=True)
    tensor([1., 0.])
    """
    caller = "semantic_nearest_neighbour_entropy"
    check_shapes(caller, similarity=(similarity, "... N G G"), weights=(weights, "... N G"), where=(where, "... N G"))
    check_positive(caller, tau=tau)
    sharpness = min(1.0 / tau, LARGEST)
    mask = _counted(similarity[..., 0], where, weights)
    exponents = (_finite(similarity) - 1.0) * sharpness
    nearness = torch.where(mask[..., None, :], exponents, -torch.inf).logsumexp(-1)
    above = -(_scaled(weights, mask) * torch.where(mask, nearness, 0.0)).sum(-1)  # SNNE + 1 / tau
    count = mask.sum(-1).double()
    if not rescale:
        return like_input(torch.where(count >= 1, above - sharpness, 0.0), similarity)
    apart = -torch.log1p((count - 1.0).clamp(min=0.0) * math.exp(-sharpness))
    return like_input(_share_of_range(above, -count.clamp(min=1).log(), apart), similarity)


def _counted(rollouts: Tensor, where: Tensor | None, needed: Tensor | None) -> Tensor:
    """Which rollouts count: those in `where` whose needed value is finite."""
    mask = torch.ones_like(rollouts, dtype=torch.bool) if where is None else where
    return mask if needed is None else mask & torch.isfinite(needed)


def _log_masses(same: Tensor, log_mass: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the share of each rollout, and of its cluster, `[..., N, G]`; -inf and 0 for those that do not count."""
    mass = torch.zeros_like(mask, dtype=torch.float64) if log_mass is None else log_mass.detach().double()
    mass = torch.where(mask, mass.clamp(-LARGEST, LARGEST), -torch.inf)
    mass = mass - mass.amax(-1, keepdim=True).clamp(min=-LARGEST)  # beside a large one, ln 2 would be lost
    total = mass.logsumexp(-1, keepdim=True)
    cluster = torch.where(same, mass[..., None, :], -torch.inf).logsumexp(-1)
    return torch.where(mask, mass - total, -torch.inf), torch.where(mask, cluster - total, 0.0)


def _blocks(clusters: Tensor, log_mass: Tensor | None, mask: Tensor) -> Tensor:
    """`[N, G, G]` of trace 1: for each cluster a block of its mass over its size, whose one eigenvalue is its mass."""
    same = same_cluster("kernel_language_entropy", clusters, mask)
    masses = _log_masses(same, log_mass, mask)[1].exp()
    return torch.where(same, (masses / same.sum(-1).clamp(min=1))[..., None], 0.0)


def _links(entailment: Tensor, mask: Tensor) -> Tensor:
    """The weights `[N, G, G]` in [0, 2] of the graph of counted answers; loops too, which the Laplacian cancels."""
    p = entailment.detach().double()
    if p.ndim == 4:
        p = p[..., ENTAILMENT] + 0.5 * (1.0 - p[..., ENTAILMENT] - p[..., CONTRADICTION])
    scores = _finite(p).clamp(0.0, 1.0)
    linked = mask[..., :, None] & mask[..., None, :]
    return torch.where(linked, scores + scores.transpose(-1, -2), 0.0)


def _unit_trace_kernel(links: Tensor, decay: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """The kernel with diagonal 1/n; rows and columns of rollouts that do not count are 0, and so are eigenvalues."""
    values, vectors = torch.linalg.eigh(torch.diag_embed(links.sum(-1)) - links)
    kernel = (vectors * decay(values)[..., None, :]) @ vectors.transpose(-1, -2)
    scale = kernel.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    scale = torch.where(mask, scale, 0.0)
    return kernel * scale[..., :, None] * scale[..., None, :] / mask.sum(-1).clamp(min=1)[..., None, None]


def _decay(values: Tensor, *, kernel: str, t: Tensor, kappa: float, nu: float) -> Tensor:
    """The kernel at eigenvalues of the Laplacian, relative to that at 0, which the unit trace cancels."""
    values = torch.where(values > ROUNDING, values, 0.0)
    if kernel == "heat":
        return torch.exp(-t * values)
    return torch.exp(-nu * torch.log1p(values * min(kappa * kappa / (2.0 * nu), LARGEST)))


def _entropy_of_one_meaning(count: Tensor, decay: Callable[[Tensor], Tensor], share: float) -> Tensor:
    """`V_same`, `[N]`: the entropy of n answers that all entail each other, mixed with that of one cluster."""
    ratio = decay(SAME_MEANING * count[:, None])[:, 0]
    largest = 1.0 / (1.0 + (count - 1.0).clamp(min=0.0) * ratio)
    return entr(share * largest + (1.0 - share)) + (count - 1.0) * entr(share * ratio * largest)


def _scaled(weights: Tensor | None, mask: Tensor) -> Tensor:
    """Weights with sum 1 over the rollouts that count."""
    equal = mask.double() / mask.sum(-1, keepdim=True).clamp(min=1)
    if weights is None:
        return equal
    w = torch.where(mask, weights.detach().double().clamp(0.0, LARGEST), 0.0)
    total = w.sum(-1, keepdim=True)
    return torch.where(total > 0, w / torch.where(total > 0, total, 1.0), equal)


def _finite(values: Tensor) -> Tensor:
    values = values.detach().double()
    return torch.where(torch.isfinite(values), values, 0.0).clamp(-LARGEST, LARGEST)


def _share_of_range(values: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """The position of values between the two, in [0, 1]; 0 if these are equal."""
    width = highest - lowest
    share = (values - lowest) / torch.where(width > ROUNDING, width, 1.0)
    return torch.where(width > ROUNDING, _without_rounding(share).clamp(max=1.0), 0.0)


def _without_rounding(values: Tensor) -> Tensor:
    return torch.where(values > ROUNDING, values, 0.0)


def check_labels(caller: str, entailment: Tensor) -> None:
    """Raises unless entailment probabilities `[N, G, G, L]` have three labels; scores `[N, G, G]` pass."""
    if entailment.ndim == 4 and entailment.shape[-1] != 3:
        labels = "(contradiction, neutral, entailment)"
        raise CalibrantError(f"{caller}: entailment [N, G, G, 3] has the labels {labels}, got {list(entailment.shape)}")
