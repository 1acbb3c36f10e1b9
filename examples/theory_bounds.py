"""What the GCPO paper proves about entropy, geometry and gradient variance, as functions to check it with.

Probabilities `pi` are `[..., K]`, one of each mode (a token, a cluster of answers); their mean gradients `mu` are
`[..., K, D]`. Single gradients are `[..., G, D]`. With Delta^2 the largest `||mu_i - mu_j||^2`, Gini impurity G and
entropy H,

    1/2 sum_ij pi_i pi_j ||mu_i - mu_j||^2  <=  Delta^2/2 G(pi)  <=  Delta^2/2 H(pi)        (12), (15), (4)

Three statements of the paper hold only in a narrower sense than they are written, see `gini_bound`,
`dispersion_bound` and `transport_bound`; each names the case in which the paper's own form fails.

Computed in float64, detached, finite, and returned in the type of the first argument. Equation numbers are those of
"Why Semantic Entropy Fails" (b).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from calibrant.checks import check_non_negative, check_shapes
from calibrant.errors import CalibrantError
from calibrant.groups import like_input

SLACK = 1e-6
"""How far rounding may carry the sum of probabilities away from 1, and a distance beyond its bound."""
LARGEST = 1e100
"""Components of gradients and embeddings beyond it count as it, so that squares stay finite."""


class VarianceParts(NamedTuple):
    """`total = intra + inter`, each `[...]`, at least 0."""

    total: Tensor
    intra: Tensor
    inter: Tensor


def gini_impurity(probabilities: Tensor) -> Tensor:
    """Gini impurity `G(pi) = 1 - sum_k pi_k^2`: how often two draws differ.

    Computed as `sum_k pi_k sum_{j != k} pi_j`, which does not cancel for a concentrated distribution.

    Args:
        probabilities: `[..., K]`, at least 0, with sum 1.

    Returns:
        `[...]` in [0, 1 - 1/K].

    Raises:
        CalibrantError: a probability is negative or not finite, or their sum is not 1.

    Reference: equations 15 and 17 (b).

    >>> gini_impurity(torch.tensor([0.5, 0.25, 0.25]))
    tensor(0.6250)
    """
    return like_input(_gini(_checked("gini_impurity", probabilities)), probabilities)


def shannon_entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy `H(pi) = -sum_k pi_k ln pi_k`.

    Args:
        probabilities: `[..., K]`, at least 0, with sum 1; `0 ln 0 = 0`.

    Returns:
        `[...]` in [0, ln K], nats; never below the Gini impurity (B.3), and for K = 2 a strictly increasing function
        of it (B.2). For K >= 3 the two can order distributions differently.

    Raises:
        CalibrantError: a probability is negative or not finite, or their sum is not 1.

    Reference: equation 16 and B.3 (b).

    >>> shannon_entropy(torch.tensor([0.5, 0.25, 0.25]))
    tensor(1.0397)
    """
    return like_input(_entropy(_checked("shannon_entropy", probabilities)), probabilities)


def pairwise_variance(probabilities: Tensor, means: Tensor) -> Tensor:
    """Variance between modes, `1/2 sum_ij pi_i pi_j ||mu_i - mu_j||^2 = sum_k pi_k ||mu_k - sum_j pi_j mu_j||^2`.

    Args:
        probabilities: `[..., K]`, at least 0, with sum 1.
        means: `[..., K, D]`, the mean gradient of each mode.

    Returns:
        `[...]`, at least 0, in squared units of the gradient.

    Raises:
        CalibrantError: shapes differ, or the probabilities are none.

    Reference: equations 4 and 12 (b). The paper writes it as an approximation of the gradient variance: it is the part
    between modes exactly, `V_inter` of equation 3, and leaves out the part within.

    >>> pairwise_variance(torch.tensor([0.5, 0.5]), torch.tensor([[0.0], [2.0]]))
    tensor(1.)
    """
    check_shapes("pairwise_variance", probabilities=(probabilities, "... K"), means=(means, "... K D"))
    p = _checked("pairwise_variance", probabilities)
    return like_input(_between(p, _finite(means)), probabilities)


def largest_disagreement(means: Tensor) -> Tensor:
    """`Delta_max^2 = max_ij ||mu_i - mu_j||^2`, the smallest constant with which the bounds hold for these modes.

    Args:
        means: `[..., K, D]`.

    Returns:
        `[...]`, at least 0.

    Raises:
        CalibrantError: shapes do not fit.

    Reference: the assumption of B.1 (b).

    >>> largest_disagreement(torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]))
    tensor(25.)
    """
    check_shapes("largest_disagreement", means=(means, "... K D"))
    return like_input(_squared_distances(_finite(means)).amax((-2, -1)), means)


def gini_bound(probabilities: Tensor, delta_squared: Tensor) -> Tensor:
    """`Delta_max^2 / 2 * G(pi)`, at least the variance between modes.

    It does not bound the whole gradient variance, as B.1 can be read ("the gradient variance is upper-bounded by Gini
    impurity"): with a single mode it is 0, whatever the variance within that mode is. What it bounds is
    `pairwise_variance`, the component that B.1 says it focuses on.

    Args:
        probabilities: `[..., K]`, at least 0, with sum 1.
        delta_squared: `[...]`, at least every `||mu_i - mu_j||^2`, e.g. `largest_disagreement`.

    Returns:
        `[...]`, at least 0.

    Raises:
        CalibrantError: shapes differ, or the probabilities are none.

    Reference: equations 13 to 15 (b).

    >>> gini_bound(torch.tensor([0.5, 0.5]), torch.tensor(4.0))
    tensor(1.)
    """
    return _bound("gini_bound", probabilities, delta_squared, _gini)


def entropy_bound(probabilities: Tensor, delta_squared: Tensor) -> Tensor:
    """`Delta_max^2 / 2 * H(pi)`, at least `gini_bound`.

    Args:
        probabilities: `[..., K]`, at least 0, with sum 1.
        delta_squared: `[...]`, at least every `||mu_i - mu_j||^2`.

    Returns:
        `[...]`, at least 0.

    Raises:
        CalibrantError: shapes differ, or the probabilities are none.

    Reference: equation 4 and B.3 (b).

    >>> entropy_bound(torch.tensor([0.5, 0.5]), torch.tensor(4.0))
    tensor(1.3863)
    """
    return _bound("entropy_bound", probabilities, delta_squared, _entropy)


def bound_slack(probabilities: Tensor, means: Tensor, delta_squared: Tensor | None = None) -> Tensor:
    """How far the Gini bound lies above the variance between modes.

    `S(pi) = Delta^2/2 G(pi) - 1/2 sum_{i != j} pi_i pi_j ||mu_i - mu_j||^2
           = 1/2 sum_{i != j} pi_i pi_j (Delta^2 - ||mu_i - mu_j||^2)`, computed in the second form.

    It is 0 when all modes are equally far apart, and near the whole bound when they are near one another; the latter
    takes a Delta from outside, since the largest distance of these modes would be small too.

    Args:
        probabilities: `[..., K]`, at least 0, with sum 1.
        means: `[..., K, D]`.
        delta_squared: `[...]`; None: `largest_disagreement(means)`.

    Returns:
        `[...]`, at least 0.

    Raises:
        CalibrantError: shapes differ, the probabilities are none, or delta_squared is less than a distance.

    Reference: equations 18 and 19 (b).

    >>> bound_slack(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([[0.0], [2.0], [2.0]]))
    tensor(0.2500)
    """
    check_shapes("bound_slack", probabilities=(probabilities, "... K"), means=(means, "... K D"))
    p, distances = _checked("bound_slack", probabilities), _squared_distances(_finite(means))
    largest = distances.amax((-2, -1))
    delta = largest if delta_squared is None else _delta("bound_slack", probabilities, delta_squared)
    if bool((delta < largest * (1 - SLACK)).any()):
        raise CalibrantError(
            "bound_slack: delta_squared has to be at least the largest squared distance of two modes; see "
            "largest_disagreement"
        )
    off = ~torch.eye(p.shape[-1], dtype=torch.bool, device=p.device)
    room = torch.where(off, (delta[..., None, None] - distances).clamp(min=0.0), 0.0)
    return like_input((p[..., :, None] * p[..., None, :] * room).sum((-2, -1)) / 2, probabilities)


def variance_decomposition(gradients: Tensor, clusters: Tensor, where: Tensor | None = None) -> VarianceParts:
    """Law of total variance: gradient variance within clusters and between them.

    With n rollouts that count, `p_k = n_k/n` and `mu_k` the mean gradient of cluster k,

        V       = 1/n sum_i ||g_i - mean g||^2                       (trace of equation 2)
        V_intra = sum_k p_k 1/n_k sum_{i in k} ||g_i - mu_k||^2      (equation 3, first term)
        V_inter = sum_k p_k ||mu_k - mean g||^2                      (equation 3, second term)

    For gradients weighted by advantages, `A_i g_i`, V is the sample-level gradient variance of equation 20.

    Args:
        gradients: `[..., G, D]`.
        clusters: `[..., G]`, integers; equal numbers in a group mean one cluster.
        where: `[..., G]`, boolean; which rollouts count.

    Returns:
        Total, intra and inter, each `[...]`; 0 if no rollout counts.

    Raises:
        CalibrantError: shapes differ, or clusters are not integers.

    Reference: equations 2 and 3 (b).

    >>> variance_decomposition(torch.tensor([[0.0], [2.0], [6.0]]), torch.tensor([0, 0, 1]))
    VarianceParts(total=tensor(6.2222), intra=tensor(0.6667), inter=tensor(5.5556))
    """
    check_shapes(
        "variance_decomposition", gradients=(gradients, "... G D"), clusters=(clusters, "... G"), where=(where, "... G")
    )
    if clusters.is_floating_point():
        raise CalibrantError(f"variance_decomposition: clusters have to be integers, got {clusters.dtype}")
    mask = torch.ones_like(clusters, dtype=torch.bool) if where is None else where
    g = torch.where(mask[..., None], _finite(gradients), 0.0)
    same = (clusters[..., :, None] == clusters[..., None, :]) & mask[..., :, None] & mask[..., None, :]
    own = same.double() @ g / same.sum(-1, keepdim=True).clamp(min=1)
    mean = g.sum(-2, keepdim=True) / mask.sum(-1)[..., None, None].clamp(min=1)
    parts = (_mean_square(a - b, mask) for a, b in ((g, mean), (g, own), (own, mean)))
    return VarianceParts(*(like_input(x, gradients) for x in parts))


def cosine_distances(embeddings: Tensor) -> Tensor:
    """`d(e_i, e_j) = 1 - cos(e_i, e_j)`, `[..., K, D]` -> `[..., K, K]` in [0, 2], not clipped at 1.

    Computed as half the squared distance of unit vectors, which does not cancel for close ones.

    Args:
        embeddings: `[..., K, D]`; only their directions count.

    Returns:
        `[..., K, K]` in [0, 2], symmetric, with a diagonal of 0.

    Raises:
        CalibrantError: shapes do not fit, or an embedding is zero or not finite.

    Reference: appendix C (b).

    >>> cosine_distances(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))[0]
    tensor([0., 1., 2.])
    """
    check_shapes("cosine_distances", embeddings=(embeddings, "... K D"))
    return like_input(_squared_distances(_unit("cosine_distances", embeddings)) / 2, embeddings)


def lipschitz_squared(means: Tensor, embeddings: Tensor) -> Tensor:
    """`L_g^2`, the smallest constant of the smoothness assumption `||mu_i - mu_j||^2 <= L_g^2 d(e_i, e_j)`.

    Args:
        means: `[..., K, D]`, the mean gradient of each mode.
        embeddings: `[..., K, E]`, one embedding a mode; only its direction counts.

    Returns:
        `[...]`, at least 0; the largest number of its type if two modes with one embedding have different gradients:
        then no constant does.

    Raises:
        CalibrantError: shapes differ.

    Reference: appendix C (b). The paper assumes it locally and up to a constant; as a finite-sample number it is an
    interpretation (c).

    >>> lipschitz_squared(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor(4.)
    """
    check_shapes("lipschitz_squared", means=(means, "... K D"), embeddings=(embeddings, "... K E"))
    apart, near = _squared_distances(_finite(means)), _squared_distances(_unit("lipschitz_squared", embeddings)) / 2
    ratio = torch.where(apart > 0, apart / near, 0.0)
    return like_input(ratio.amax((-2, -1)), means)


def dispersion_bound(probabilities: Tensor, embeddings: Tensor, lipschitz: float) -> Tensor:
    """`L_g^2/2 sum_ij pi_i pi_j d(e_i, e_j)`, at least the variance between modes if gradients are `L_g`-smooth.

    The paper equates the sum with CD. That is so while no two embeddings point away from each other: CD clips
    distances at 1, and `L_g^2/2 CD` can then lie below the variance (two opposite embeddings: by half). The distances
    are not clipped here.

    Args:
        probabilities: `[..., K]`, at least 0, with sum 1; 1/G each for single rollouts.
        embeddings: `[..., K, E]`; only the direction counts.
        lipschitz: `L_g^2`, at least 0; see `lipschitz_squared`.

    Returns:
        `[...]`, at least 0.

    Raises:
        CalibrantError: shapes differ, or the probabilities are none.

    Reference: appendix C, first bound (b); without the clipping (c).

    >>> dispersion_bound(torch.tensor([0.5, 0.5]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), lipschitz=4.0)
    tensor(1.)
    """
    check_shapes("dispersion_bound", probabilities=(probabilities, "... K"), embeddings=(embeddings, "... K E"))
    check_non_negative("dispersion_bound", lipschitz=lipschitz)
    p = _checked("dispersion_bound", probabilities)
    return like_input(lipschitz / 2 * _between(p, _unit("dispersion_bound", embeddings)), probabilities)


def transport_bound(probabilities: Tensor, centroids: Tensor, lipschitz: float) -> Tensor:
    """`L_g^2 sum_k Pi_k d(mu_k, mu*)`, at least the variance between clusters if gradients are `L_g`-smooth.

    `mu* = sum_k Pi_k mu_k / ||sum_k Pi_k mu_k||` (equation 9), so the sum is `1 - ||sum_k Pi_k mu_k||`. The paper
    continues "= L_g^2 BoT(x)", but BoT (equation 10) carries a factor 1/2: the sum is 2 BoT, and `L_g^2 BoT` can lie
    below the variance (two orthogonal clusters of equal mass: 0.146 against 0.25 for `L_g = 1`). Smoothness between
    clusters is enough, none is needed at `mu*`: the sharper `L_g^2 BoT (1 + ||sum_k Pi_k mu_k||)` equals
    `dispersion_bound` of the centroids.

    Args:
        probabilities: `[..., K]`, the masses of the clusters, at least 0, with sum 1.
        centroids: `[..., K, E]`; only the direction counts.
        lipschitz: `L_g^2`, at least 0; see `lipschitz_squared`.

    Returns:
        `[...]`, at least 0.

    Raises:
        CalibrantError: shapes differ, or the probabilities are none.

    Reference: appendix C, second bound (b); the factor 2 (c).

    >>> transport_bound(torch.tensor([0.5, 0.5]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), lipschitz=1.0)
    tensor(0.2929)
    """
    check_shapes("transport_bound", probabilities=(probabilities, "... K"), centroids=(centroids, "... K E"))
    check_non_negative("transport_bound", lipschitz=lipschitz)
    p = _checked("transport_bound", probabilities)
    spread = _between(p, _unit("transport_bound", centroids))
    length = (1 - spread).clamp(min=0.0).sqrt()
    return like_input(lipschitz * spread / (1 + length), probabilities)


def _checked(caller: str, probabilities: Tensor) -> Tensor:
    """Probabilities in float64, with sum exactly near 1."""
    check_shapes(caller, probabilities=(probabilities, "... K"))
    p = probabilities.detach().double()
    tolerance = max(SLACK, 4 * torch.finfo(probabilities.dtype).eps) if probabilities.is_floating_point() else SLACK
    total = p.sum(-1, keepdim=True)
    if not bool(((p >= 0).all(-1) & ((total[..., 0] - 1).abs() <= tolerance)).all()):
        raise CalibrantError(f"{caller}: probabilities have to be at least 0 with sum 1 over the last axis")
    return p / total


def _finite(values: Tensor) -> Tensor:
    """Float64 whose squares are finite; a NaN counts as 0."""
    return values.detach().double().nan_to_num(0.0).clamp(-LARGEST, LARGEST)


def _unit(caller: str, embeddings: Tensor) -> Tensor:
    """Embeddings of length 1, in float64."""
    values = _finite(embeddings)
    size = values.abs().amax(-1, keepdim=True)
    if bool((size == 0).any()):
        raise CalibrantError(f"{caller}: an embedding is zero or not finite, and has no direction")
    values = values / size
    return values / values.norm(dim=-1, keepdim=True)


def _delta(caller: str, probabilities: Tensor, delta_squared: Tensor) -> Tensor:
    if delta_squared.shape != probabilities.shape[:-1]:
        raise CalibrantError(
            f"{caller}: expected delta_squared {list(probabilities.shape[:-1])}, one for each distribution, "
            f"got {list(delta_squared.shape)}"
        )
    delta = delta_squared.detach().double()
    if not bool(((delta >= 0) & torch.isfinite(delta)).all()):
        raise CalibrantError(f"{caller}: delta_squared has to be finite and at least 0")
    return delta


def _gini(p: Tensor) -> Tensor:
    before = pad(p.cumsum(-1)[..., :-1], (1, 0))
    after = pad(p.flip(-1).cumsum(-1)[..., :-1], (1, 0)).flip(-1)
    return (p * (before + after)).sum(-1)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


def _bound(caller: str, probabilities: Tensor, delta_squared: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Divides probabilities by their sum once: again, and one near 1 may move by a digit that entropies show."""
    p = _checked(caller, probabilities)
    return like_input(_delta(caller, probabilities, delta_squared) / 2 * measure(p), probabilities)


def _squared_distances(x: Tensor) -> Tensor:
    """`||x_i - x_j||^2` from differences, `[..., K, D]` -> `[..., K, K]`: no cancellation between large norms."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()


def _between(p: Tensor, means: Tensor) -> Tensor:
    """`sum_k p_k ||mu_k - sum_j p_j mu_j||^2`."""
    centre = (p[..., None] * means).sum(-2, keepdim=True)
    return (p * (means - centre).square().sum(-1)).sum(-1)


def _mean_square(deviations: Tensor, mask: Tensor) -> Tensor:
    squares = torch.where(mask, deviations.square().sum(-1), 0.0).sum(-1)
    return squares / mask.sum(-1).clamp(min=1)
