"""Micro-batches before a pass: rows in order of groups, and rows without a policy gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from calibrant.policy.prompts import distinct_rows
from calibrant.trl.passes import Batch


def along_groups(batches: Sequence[Batch], window: int) -> list[Batch]:
    """Micro-batches of the same rows and sizes, those of each window in order of groups.

    A trainer sums the gradients of the micro-batches of a window, so that rows may change places within it. Groups
    stay together as far as they fit, those with short completions first, so that padding is cut off.

    `window` of them make up one step of the optimizer. They hold two more values: `position [B]`, where each row was in
    its window, and `window`.
    """
    out: list[Batch] = []
    for start in range(0, len(batches), window):
        part = batches[start : start + window]
        rows = {name: _joined([x[name] for x in part]) for name in ("prompt_ids", "prompt_mask", "completion_mask")}
        order = _order(**rows)
        out += [batch | {"window": window} for batch in _arranged(part, order, position=torch.arange(len(order)))]
    return out


def in_order(batches: Sequence[Batch]) -> list[Batch]:
    """The micro-batches of one window with the rows that each had before `along_groups`."""
    return _arranged(batches, torch.cat([batch["position"] for batch in batches]).argsort())


def _arranged(batches: Sequence[Batch], order: Tensor, **more: Tensor) -> list[Batch]:
    """Micro-batches of the same sizes with their rows in another order; `more` are further values `[rows]`."""
    whole = {name: _joined([batch[name] for batch in batches]) for name in batches[0]} | more
    parts = order.split([len(batch["prompt_ids"]) for batch in batches])
    return [{name: _chosen(value, rows) for name, value in whole.items()} for rows in parts]


def _order(prompt_ids: Tensor, prompt_mask: Tensor, completion_mask: Tensor) -> Tensor:
    """Row numbers by group, groups by their longest completion."""
    which, lengths = distinct_rows(prompt_ids, prompt_mask).which, completion_mask.sum(1)
    longest = torch.zeros_like(lengths).scatter_reduce(0, which, lengths, "amax")
    return torch.argsort(longest[which] * len(which) + which, stable=True)


def _joined(values: Sequence[Any]) -> Any:
    """Values of several micro-batches as one; scalars are the same in all."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.ndim else first
    return [x for value in values for x in value] if isinstance(first, list) else first


def _chosen(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim else value
    return [value[i] for i in rows.tolist()] if isinstance(value, list) else value


def contributing(advantages: Tensor, lengths: Tensor) -> Tensor:
    """Which rows a policy gradient needs, boolean `[B]`: those with an advantage other than 0, and at least one.

    Where there is none it is the shortest row, as every process has to run its forward and backward pass.

    `advantages` are `[B]` or, per token, `[B, T]`; `lengths [B]` count the tokens of each completion.

    >>> contributing(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([3, 3, 3]))
    tensor([False,  True,  True])
    >>> contributing(torch.zeros(3), torch.tensor([3, 1, 2]))
    tensor([False,  True, False])
    """
    moved = advantages.flatten(1).ne(0).any(1) if advantages.ndim > 1 else advantages.ne(0)
    return moved if moved.any() else torch.arange(len(lengths), device=lengths.device) == lengths.argmin()
