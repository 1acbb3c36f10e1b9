"""How well a score finds the prompts of the largest target: area under the ROC curve and precision at the top."""

import torch
from torch import Tensor

from calibrant.groups import like_input
from calibrant.statistics.counted import as_labels, check_fraction, counted, size_of_share
from calibrant.statistics.ranks import sort_counted, tie_blocks, with_mask, won_pairs


def auc(score: Tensor, label: Tensor, where: Tensor | None = None) -> Tensor:
    """Area under the ROC curve: how often a labelled entry has a larger score than one without the label.

    `AUC = P(u(q+) > u(q-)) + 0.5 P(u(q+) = u(q-))`, in [0, 1]; 0.5 where there is no pair (c). Labels are boolean, or 0
    and 1, or NaN; leading axes are broadcast.

    Reference: GCPO, equation 22 (b), which leaves out the term for ties: without it a score with ties could not
    reach `AUC(u) + AUC(-u) = 1`, and a constant score would have an area of 0 (c).

    >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 1, 0, 1]))
    tensor(0.8750)
    """
    mask = counted("auc", where, score=score, label=label)
    return like_input(pair_share(score, as_labels("auc", "label", label), mask).nan_to_num(0.5), score)


def pair_share(score: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """The area `[...]` in float64; NaN where there is no pair."""
    ordered, order = sort_counted(score.expand(mask.shape), mask)
    positive = (label & mask).gather(-1, order).double()
    negative = (~label & mask).gather(-1, order).double()
    return won_pairs(ordered, positive, negative) / (positive.sum(-1) * negative.sum(-1))


def top_labels(values: Tensor, share: float = 0.1, where: Tensor | None = None) -> Tensor:
    """Which entries are the top share by value, `[..., N]` boolean: the set that a score is to find.

    The largest `k = ceil(share * n)` values. A tie at the border is taken in whole or left out whole, whichever
    is closer to k, unless the set would be empty; so the order of the entries does not matter.

    Reference: GCPO, D.5 (b); the rule for ties (c).

    >>> top_labels(torch.tensor([0.0, 3.0, 1.0, 0.0, 0.0]), share=0.4)
    tensor([False,  True,  True, False, False])
    """
    check_fraction("top_labels", share=share)
    mask = counted("top_labels", where, values=values)
    first, end = _blocks_from_the_top(values, mask)
    size = size_of_share(share, mask.sum(-1, keepdim=True))
    inside = (first < size) & ((end <= size) | (end - size <= size - first) | (first == 0))
    return inside & mask


def precision_at(score: Tensor, target: Tensor, share: float = 0.1, where: Tensor | None = None) -> Tensor:
    """The share of the top entries by score that are top entries by target.

    `Precision = |Top(score) and Top(target)| / k` with `k = ceil(share * n)`, in [0, 1]; 0 where nothing counts. Where
    a tie straddles the border, its members are in with equal probability and the result is the expectation: the order
    of the entries does not matter, and a constant score has the precision of chance. Leading axes are broadcast.

    Reference: GCPO, equation 23, Precision@10% (b); the expectation over ties (c).

    >>> precision_at(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1.0, 4.0, 2.0, 3.0]), share=0.5)
    tensor(0.5000)
    """
    check_fraction("precision_at", share=share)
    mask = counted("precision_at", where, score=score, target=target)
    return like_input(top_overlap(score, target, mask, share), score)


def top_overlap(score: Tensor, target: Tensor, mask: Tensor, share: float = 0.1) -> Tensor:
    """The precision `[...]` in float64."""
    size = size_of_share(share, mask.sum(-1, keepdim=True))
    chance = torch.ones_like(mask, dtype=torch.float64)
    for values in (score, target):
        first, end = _blocks_from_the_top(values, mask)
        chance = chance * ((size - first) / (end - first)).clamp(0.0, 1.0)
    return torch.where(mask, chance, 0.0).sum(-1) / size[..., 0]


def _blocks_from_the_top(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How many counted values are larger than each one, and how many are not smaller: `[..., N]` twice."""
    ordered, order = sort_counted(*with_mask(values, mask), descending=True)
    first, end = tie_blocks(ordered)
    return torch.zeros_like(first).scatter(-1, order, first), torch.zeros_like(end).scatter(-1, order, end)
