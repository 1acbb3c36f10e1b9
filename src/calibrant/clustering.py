"""Clusters of answers with one meaning, from keys or from pairwise entailment."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from calibrant.checks import check_non_negative, check_shapes
from calibrant.errors import CalibrantError

EXCLUDED = -1
"""The cluster of a rollout that `where` excludes."""


def greedy_clusters(
    pairwise_or_keys: Tensor | Sequence[Sequence[Hashable]],
    where: Tensor | None = None,
    *,
    threshold: float = 0.35,
) -> Tensor:
    """Cluster numbers of the answers of each group, 0, 1, ... in order of first appearance.

    From keys: equal keys share a cluster; an empty key ("" or None) says nothing and is a cluster of its own, each.

    From entailment probabilities `p[n, i, j] = P(answer i entails answer j)`: the first answer opens a cluster; each
    later answer j is compared with the first member r of every cluster, joins the one with the LARGEST `p[n, r, j]`
    if that is at least the threshold, else opens a new one. One direction only, and the result depends on the order
    of the answers, as in the paper. Among equal probabilities the lowest cluster wins (c). A probability that is NaN
    joins nothing.

    Args:
        pairwise_or_keys: `[N, G, G]` probabilities, or N sequences of G keys.
        where: `[N, G]`, boolean; rollouts out of it neither open nor join a cluster.
        threshold: the smallest probability that joins, in [0, 1]; not used with keys.

    Returns:
        `[N, G]`, int64; -1 for rollouts out of `where`. Give what reads the clusters the same `where`: there -1 is a
        number like any other.

    Raises:
        CalibrantError: shapes differ, groups of keys differ in length, or the threshold is out of [0, 1].

    Reference: GCPO, appendix E.3 (b).

    >>> greedy_clusters([["paris", "lyon", "paris", "", ""]])
    tensor([[0, 1, 0, 2, 3]])
    >>> p = torch.tensor([[[1.0, 0.2, 0.9], [0.2, 1.0, 0.4], [0.0, 0.0, 1.0]]])
    >>> greedy_clusters(p)  # 2 is entailed by 0 (0.9) and by 1 (0.4): 0 is larger
    tensor([[0, 1, 0]])
    """
    check_non_negative("greedy_clusters", threshold=threshold)
    if threshold > 1:
        raise CalibrantError(f"greedy_clusters: threshold is a probability in [0, 1], got {threshold!r}")
    if isinstance(pairwise_or_keys, Tensor):
        return _from_entailment(pairwise_or_keys, where, threshold)
    return _from_keys(pairwise_or_keys, where)


def _from_entailment(entailment: Tensor, where: Tensor | None, threshold: float) -> Tensor:
    check_shapes("greedy_clusters", pairwise=(entailment, "N G G"), where=(where, "N G"))
    p = (entailment.detach() if entailment.is_floating_point() else entailment.double()).nan_to_num(nan=-1.0)
    mask = torch.ones(p.shape[:2], dtype=torch.bool, device=p.device) if where is None else where
    lowest = torch.tensor(threshold, dtype=p.dtype, device=p.device)
    ids = torch.full(p.shape[:2], EXCLUDED, dtype=torch.int64, device=p.device)
    is_first = torch.zeros_like(mask)
    for j in range(p.shape[1]):
        best, first = torch.where(is_first, p[:, :, j], -1.0).max(dim=1)
        joins = mask[:, j] & (best >= lowest)
        opens = mask[:, j] & ~joins
        ids[:, j] = torch.where(joins, ids.gather(1, first[:, None])[:, 0], ids[:, j])
        ids[:, j] = torch.where(opens, is_first.sum(1), ids[:, j])
        is_first[:, j] = opens
    return ids


def _from_keys(keys: Sequence[Sequence[Hashable]], where: Tensor | None) -> Tensor:
    if isinstance(keys, str) or any(isinstance(group, str) for group in keys):
        raise CalibrantError("greedy_clusters: expected N lists of G keys, got a flat list; split it into groups")
    lengths = sorted({len(group) for group in keys})
    if len(lengths) > 1:
        raise CalibrantError(f"greedy_clusters: every group needs the same number G of keys, got groups of {lengths}")
    shape = (len(keys), lengths[0] if lengths else 0)
    mask = torch.ones(shape, dtype=torch.bool) if where is None else where
    if isinstance(mask, Tensor) and mask.shape != shape:
        expected = "expected keys [N, G] and where [N, G]"
        raise CalibrantError(f"greedy_clusters: {expected}, got keys {list(shape)} and where {list(mask.shape)}")
    check_shapes("greedy_clusters", where=(mask, "..."))
    ids = [_numbered(group, counts) for group, counts in zip(keys, mask.tolist(), strict=True)]
    return torch.tensor(ids, dtype=torch.int64, device=mask.device).reshape(shape)


def _numbered(group: Sequence[Hashable], mask: Sequence[bool]) -> list[int]:
    """Cluster numbers of one group of keys."""
    known: dict[Hashable, int] = {}
    return [
        known.setdefault((i, "empty") if key in ("", None) else (key, "key"), len(known)) if counts else EXCLUDED
        for i, (key, counts) in enumerate(zip(group, mask, strict=True))
    ]
