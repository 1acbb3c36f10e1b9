"""How far apart the answers of a group are: in meaning, pairwise and by mode, and in reward.

Excluded rows may have any values; a group with fewer than two rows has dispersion 0.

Embeddings `[..., N, G, D]` may have any length: they are scaled to length one here. A vector of zeros, or whose length
is not finite, has no direction (c): its cosine to every other row is 0, so its distance 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.checks import check_reward_range, check_shapes
from calibrant.groups import like_input, masked, mean_over
from calibrant.signals.confidence import same_cluster

NO_DIRECTION = 1e-6  # a mean of unit vectors that is not longer than this is rounding, and has no direction
SHORTEST = 1e-100  # a vector that is not longer than this counts as zero: the squares of its entries may underflow

ROUNDING = 1e-12
"""A dispersion below this is rounding, and returned as 0: groups of one meaning are then ties in a ranking."""


def cosine_dispersion(embeddings: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean cosine distance between the answers of a group: an uncertainty.

    `D_ij = clip(1 - e_i . e_j, 0, 1)`; `CD = sum_ij D_ij / n^2`, the diagonal (which is 0) included: `[..., N]` in
    [0, 1 - 1/n]; 0 for answers with one meaning.

    It grows with how far apart answers are, not only with whether they differ. If no cosine is negative,
    `CD = 1 - R^2` with R the length of the mean unit vector.

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
    `BoT = sum_k Pi_k (1 - mu_k . mu*) / 2 = (1 - ||b||) / 2`: `[..., N]` in [0, 1/2]; 0 if all clusters point one way.

    Differences inside a cluster do not count; the distance between clusters, and their masses, do. The last form
    (derived, not in the paper) is what is computed: it needs no direction `mu*`, which antipodal clusters do not have.
    Over singleton clusters `BoT = (1 - R) / 2` with R as in `cosine_dispersion`. A cluster whose vectors cancel has no
    direction and costs 1/2.

    Reference: GCPO, equations 9 and 10 and appendix E.3 (b).

    >>> barycentric_transport(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[0, 1]]))  # (1 - 1/sqrt(2)) / 2
    tensor([0.1464])
    >>> barycentric_transport(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[5, 5]]))
    tensor([0.])
    """
    shapes = {"embeddings": (embeddings, "... N G D"), "clusters": (clusters, "... N G"), "where": (where, "... N G")}
    check_shapes("barycentric_transport", **shapes)
    e, mask = _unit_rows(embeddings, where)
    members = _membership(clusters, mask)
    sums, sizes = members @ e, members.sum(-1)
    count = mask.sum(-1)
    masses = sizes / count.clamp(min=1)[..., None]
    barycentre = (masses * _inverse_lengths(sums, sizes))[..., None, :] @ sums
    transport = (1.0 - torch.linalg.vector_norm(barycentre, dim=(-2, -1))) / 2.0
    return like_input(_rounded(transport, count), embeddings)


def reward_dispersion(rewards: Tensor, reward_range: Sequence[float], where: Tensor | None = None) -> Tensor:
    """How far apart the rewards of a group are, as a share of what the range allows: how informative a group is.

    `raw = sum_i |r_i - mean|`; `RDmax = (2 / n) floor(n/2) ceil(n/2) (rmax - rmin)`; `RD = clip(raw / RDmax, 0, 1)`:
    `[..., N]`, 0 for equal rewards, 1 if half are lowest and half highest. n counts the scorable rollouts (c).

    For rewards that are either rmin or rmax and an even n, `RD = 4 p (1 - p)` with p the share of rmax. Give it the
    raw task reward with its configured range, never a shaped sum. Rewards outside of the range are not clipped, only
    the result is: warn with `groups.count_out_of_range`.

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
    same = same_cluster("barycentric_transport", clusters, mask)
    first = ~same.tril(-1).any(-1)
    return (same & first[..., None]).double()


def _rounded(dispersion: Tensor, count: Tensor) -> Tensor:
    """Exactly 0 where only rounding is left, and with fewer than two rows."""
    return torch.where((count >= 2) & (dispersion > ROUNDING), dispersion, 0.0)


def _inverse_lengths(sums: Tensor, sizes: Tensor) -> Tensor:
    """The factor that scales each cluster sum to length one; 0 if the mean of the cluster has no direction."""
    length = torch.linalg.vector_norm(sums, dim=-1)
    clear = length > NO_DIRECTION * sizes
    return torch.where(clear, 1.0 / torch.where(clear, length, 1.0), 0.0)
