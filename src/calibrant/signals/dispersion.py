"""How far apart the answers of a group are: in meaning, pairwise and by mode, and in reward.

Rows that `where` excludes are as good as dropped: their values may be anything, and counts are of the rest. Results
are computed in float64, detached, and returned in the type of the input; a group with fewer than two rows has
dispersion 0.

Embeddings are scaled to length one here. A vector of zeros, or whose length is not finite, has no direction
and carries no meaning (c): it is unlike every other row (cosine 0, so distance 1, also to another such vector).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.checks import check_reward_range, check_shapes
from calibrant.errors import CalibrantError
from calibrant.groups import like_input, masked, mean_over

NO_DIRECTION = 1e-6
"""A mean of unit vectors that is not longer than this has no direction: what is left is rounding."""

SHORTEST = 1e-100
"""A vector that is not longer than this counts as zero: the squares of its entries may not be numbers any more."""

ROUNDING = 1e-12
"""A dispersion below this is rounding, and returned as 0: groups of one meaning are then ties in a ranking."""


def cosine_dispersion(embeddings: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean cosine distance between the answers of a group: an uncertainty.

    `D_ij = clip(1 - e_i . e_j, 0, 1)`; `CD = sum_ij D_ij / n^2`, the diagonal (which is 0) included.

    It grows with how far apart answers are, not only with whether they differ. If no cosine is negative,
    `CD = 1 - R^2` with R the length of the mean unit vector.

    Args:
        embeddings: `[..., N, G, D]`, of any length; scaled to length one here.

    Returns:
        `[..., N]` in [0, 1 - 1/n]; 0 for answers with one meaning.

    Reference: GCPO, equation 7 (b).

    >>> cosine_dispersion(torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]]))  # 2 (2 + 2 0.4 + 0.2) / 16
    tensor([0.3750])
    """
    check_shapes("cosine_dispersion", embeddings=(embeddings, "... N G D"), where=(where, "... N G"))
    e, mask = _unit_rows(embeddings, where)
    cosine = (e @ e.transpose(-1, -2)).clamp_(0.0, 1.0)
    cosine.diagonal(dim1=-2, dim2=-1).copy_(mask)
    count = mask.sum(-1)
    dispersion = 1.0 - cosine.sum((-1, -2)) / count.clamp(min=1).square()
    return like_input(_rounded(dispersion, count), embeddings)


def barycentric_transport(embeddings: Tensor, clusters: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean cosine cost of moving the modes of a group to their common direction: an uncertainty.

    `Pi_k = n_k / n`; `mu_k = normalise(sum_{i in k} e_i)`; `b = sum_k Pi_k mu_k`; `mu* = b / ||b||`;
    `BoT = sum_k Pi_k (1 - mu_k . mu*) / 2 = (1 - ||b||) / 2`.

    What varies inside a cluster of one meaning does not count; how far clusters are apart, and how much mass they
    have, does. The last form (derived, not in the paper) is what is computed: it needs no direction `mu*`, which
    antipodal clusters do not have. Over singleton clusters `BoT = (1 - R) / 2` with R as in `cosine_dispersion`.
    A cluster whose vectors cancel has no direction and costs 1/2.

    Args:
        embeddings: `[..., N, G, D]`, of any length; scaled to length one here.

    Returns:
        `[..., N]` in [0, 1/2]; 0 if all clusters point one way.

    Reference: GCPO, equations 9 and 10 and appendix E.3 (b).

    >>> barycentric_transport(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[0, 1]]))  # (1 - 1/sqrt(2)) / 2
    tensor([0.1464])
    >>> barycentric_transport(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[5, 5]]))
    tensor([0.])
    """
    check_shapes(
        "barycentric_transport",
        embeddings=(embeddings, "... N G D"),
        clusters=(clusters, "... N G"),
        where=(where, "... N G"),
    )
    if clusters.is_floating_point():
        raise CalibrantError(f"barycentric_transport: clusters have to be integers, got {clusters.dtype}")
    e, mask = _unit_rows(embeddings, where)
    members = _membership(clusters, mask)
    sums, sizes = members @ e, members.sum(-1)
    count = mask.sum(-1)
    masses = sizes / count.clamp(min=1)[..., None]
    barycentre = (masses * _inverse_lengths(sums, sizes))[..., None, :] @ sums
    transport = (1.0 - torch.linalg.vector_norm(barycentre, dim=(-2, -1))) / 2.0
    return like_input(_rounded(transport, count), embeddings)


def reward_dispersion(rewards: Tensor, reward_range: Sequence[float], where: Tensor | None = None) -> Tensor:
    """How far apart the rewards of a group are, as a share of what the range allows: how much there is to learn.

    `raw = sum_i |r_i - mean|`; `RDmax = (2 / n) floor(n/2) ceil(n/2) (rmax - rmin)`; `RD = clip(raw / RDmax, 0, 1)`.

    For rewards that are either rmin or rmax and an even n, `RD = 4 p (1 - p)` with p the share of rmax. Give it the
    raw task reward with its configured range, never a shaped sum. Rewards outside of the range are not clipped, only
    the result is: warn with `groups.count_out_of_range`.

    Interpretation (c): with unscorable rollouts, n counts the others.

    Args:
        reward_range: (lowest, highest) reward.

    Returns:
        `[..., N]` in [0, 1]; 0 for equal rewards, 1 if half are lowest and half highest.

    Reference: GCPO, equation 11 and appendix E.3 (b).

    >>> reward_dispersion(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), (0.0, 2.0))  # (1.25 + 0.75 + 0.75 + 0.25) / 4
    tensor([0.7500])
    """
    check_shapes("reward_dispersion", rewards=(rewards, "... N G"), where=(where, "... N G"))
    low, high = check_reward_range("reward_dispersion", reward_range)
    values, mask = masked(rewards, where)
    count = mask.sum(-1).double()
    raw = torch.where(mask, (values - mean_over(values, mask)[..., None]).abs(), 0.0).sum(-1)
    largest = 2.0 / count * (count / 2).floor() * (count / 2).ceil() * (high - low)
    return like_input((raw / torch.where(count >= 2, largest, 1.0)).clamp(0.0, 1.0), rewards)


def _unit_rows(embeddings: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Embeddings in float64 and of length one, rows without direction or out of `where` zero; and the full mask."""
    mask = torch.ones(embeddings.shape[:-1], dtype=torch.bool, device=embeddings.device) if where is None else where
    e = embeddings.detach().to(torch.float64, copy=True)
    length = torch.linalg.vector_norm(e, dim=-1, keepdim=True)
    usable = mask[..., None] & torch.isfinite(length) & (length > SHORTEST)
    return e.masked_fill_(~usable, 0.0).div_(torch.where(usable, length, 1.0)), mask


def _membership(clusters: Tensor, mask: Tensor) -> Tensor:
    """`[..., N, G, G]` float64: row k lists the members of the cluster that rollout k is the first of, else zeros."""
    same = (clusters[..., :, None] == clusters[..., None, :]) & mask[..., :, None] & mask[..., None, :]
    first = ~same.tril(-1).any(-1)
    return (same & first[..., None]).double()


def _rounded(dispersion: Tensor, count: Tensor) -> Tensor:
    """Exactly 0 where only rounding is left, and with fewer than two rows."""
    return torch.where((count >= 2) & (dispersion > ROUNDING), dispersion, 0.0)


def _inverse_lengths(sums: Tensor, sizes: Tensor) -> Tensor:
    """What scales each cluster sum to length one; 0 if the mean of the cluster has no direction."""
    length = torch.linalg.vector_norm(sums, dim=-1)
    clear = length > NO_DIRECTION * sizes
    return torch.where(clear, 1.0 / torch.where(clear, length, 1.0), 0.0)
