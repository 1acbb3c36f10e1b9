"""Ranks with ties, for rank correlations, areas under curves and top shares."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def tie_blocks(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """For each entry of `[..., M]`, sorted in either direction, where its run of equal values starts, and its end.

    Two tensors of positions, the ends exclusive; a NaN equals nothing.

    >>> [x.tolist() for x in tie_blocks(torch.tensor([0.1, 0.5, 0.5, 0.9]))]
    [[0, 1, 1, 3], [1, 3, 3, 4]]
    """
    size = ordered.shape[-1]
    differs = ordered[..., 1:] != ordered[..., :-1]
    edge = torch.ones_like(ordered[..., :1], dtype=torch.bool)
    positions = torch.arange(size, device=ordered.device)
    first = torch.where(torch.cat([edge, differs], -1), positions, 0).cummax(-1).values
    end = torch.where(torch.cat([differs, edge], -1), positions + 1, size)
    return first, end.flip(-1).cummin(-1).values.flip(-1)


def take(values: Tensor, positions: Tensor) -> Tensor:
    """Values at positions along the last axis; leading axes of the two are broadcast, without a copy of the positions.

    >>> take(torch.tensor([[1, 2], [3, 4]]), torch.tensor([1, 0, 1])).tolist()
    [[2, 1, 2], [4, 3, 4]]
    """
    leading = torch.broadcast_shapes(values.shape[:-1], positions.shape[:-1])
    values = values.expand(*leading, values.shape[-1])
    return values.gather(-1, positions.expand(*leading, positions.shape[-1]))


def sort_counted(values: Tensor, mask: Tensor, *, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Values in float64 in order, those that do not count last (as NaN), and where each came from: `[..., M]` twice.

    Equal values keep their order.
    """
    numbers = values.detach().double()
    ordered, order = torch.where(mask, -numbers if descending else numbers, torch.nan).sort(stable=True, dim=-1)
    return -ordered if descending else ordered, order


def with_mask(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Values and mask of one shape; where everything counts that of the values, so that shared ones are sorted once."""
    if bool(mask.all()):
        return values, torch.ones_like(values, dtype=torch.bool)
    return values.expand(mask.shape), mask


def mid_ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Ranks from 1 upwards, `[..., M]` in float64, in each tie the mean of its ranks; 0 where the mask is False.

    >>> mid_ranks(torch.tensor([0.5, 0.1, 0.5, 9.0]), torch.tensor([True, True, True, False])).tolist()
    [2.5, 1.0, 2.5, 0.0]
    """
    ordered, order = sort_counted(values, mask)
    first, end = tie_blocks(ordered)
    ranks = torch.zeros_like(ordered).scatter(-1, order, (first + end + 1).double() / 2)
    return torch.where(mask, ranks, 0.0)


def won_pairs(ordered: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Weight of the pairs (positive, negative) whose positive has the larger value; half of it in a tie.

    `sum_i p_i (sum_{j: x_j < x_i} q_j + 0.5 sum_{j: x_j = x_i} q_j)`, from cumulative sums, for ascending values x, a
    NaN last, and weights p and q in the same order: `[..., M]` -> `[...]` in float64, exact for whole numbers.
    """
    first, end = tie_blocks(ordered)
    below = pad(negative.double().cumsum(-1), (1, 0))
    twice = take(below, first) + take(below, end)
    return (positive * twice).sum(-1) / 2
