"""Rows of a batch and the distinct prompts among them."""

from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError


class Tokens(NamedTuple):
    """B rows of prompts `[B, P]` and completions `[B, T]`."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor

    def rows(self, index: Tensor) -> "Tokens":
        """Some rows, in the order of `index`."""
        return Tokens(*(tensor[index] for tensor in self))

    def whole(self) -> tuple[Tensor, Tensor]:
        """Ids and mask of prompts and completions, `[B, P + T]`."""
        mask = torch.cat([self.prompt_mask, self.completion_mask.to(self.prompt_mask)], dim=1)
        return torch.cat([self.prompt_ids, self.completion_ids], dim=1), mask

    def without_last_columns(self) -> "Tokens":
        """Without the columns at the end that no completion reaches; one column stays where there is one.

        Nothing attends to what follows it, so the other columns are what they were.
        """
        columns = torch.arange(1, self.completion_mask.shape[1] + 1, device=self.completion_mask.device)
        reached = int((columns * (self.completion_mask != 0)).max()) if len(columns) else 0
        end = max(1, reached)
        return self._replace(completion_ids=self.completion_ids[:, :end], completion_mask=self.completion_mask[:, :end])


class Prompts(NamedTuple):
    """N distinct prompts: the row where each first occurs `[N]`, which one each row has `[B]`, rows of each `[N]`."""

    first: Tensor
    which: Tensor
    rows: Tensor


def check_batch(caller: str, batch: Tokens) -> None:
    """Raises a CalibrantError, in the name of `caller`, unless shapes fit and masks hold 0 and 1."""
    check_shapes(
        caller,
        prompt_ids=(batch.prompt_ids, "B P"),
        prompt_mask=(batch.prompt_mask, "B P"),
        completion_ids=(batch.completion_ids, "B T"),
        completion_mask=(batch.completion_mask, "B T"),
    )
    for name in ("prompt_mask", "completion_mask"):
        mask = getattr(batch, name)
        if mask.is_floating_point() or bool(((mask != 0) & (mask != 1)).any()):
            raise CalibrantError(f"{caller}: {name} has to hold 0 and 1 (integers or booleans), got {mask.dtype}")


def distinct_rows(ids: Tensor, mask: Tensor) -> Prompts:
    """The distinct prompts among rows of ids and mask `[B, P]`, by exact comparison."""
    return _prompts(_keys(ids, mask), dim=0)


def _keys(ids: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([ids, mask.to(ids)], dim=1)


def _prompts(keys: Tensor, dim: int | None = None) -> Prompts:
    _, which, rows = torch.unique(keys, dim=dim, return_inverse=True, return_counts=True)
    order = which.argsort(stable=True)
    return Prompts(order[rows.cumsum(0) - rows], which, rows)


def distinct_prompts(batch: Tokens, prefix_index: Tensor | None = None) -> Prompts:
    """The distinct prompts of a batch, by exact comparison of ids and mask or as `prefix_index` numbers them.

    >>> ids, mask = torch.tensor([[7, 8], [0, 9], [7, 8]]), torch.tensor([[1, 1], [0, 1], [1, 1]])
    >>> distinct_prompts(Tokens(ids, mask, ids, mask)).which
    tensor([1, 0, 1])
    """
    if prefix_index is None:
        return distinct_rows(batch.prompt_ids, batch.prompt_mask)
    check_shapes("prefix_index", prompt_ids=(batch.prompt_ids, "B P"), prefix_index=(prefix_index, "B"))
    prompts, keys = _prompts(prefix_index), _keys(batch.prompt_ids, batch.prompt_mask)
    different = (keys != keys[prompts.first[prompts.which]]).any(1).nonzero()
    if len(different):
        row = int(different[0])
        raise CalibrantError(
            f"prefix_index gives row {row} the number {int(prefix_index[row])}, as row "
            f"{int(prompts.first[prompts.which[row]])} has, but their prompts differ; give each prompt its own number"
        )
    return prompts


def group_chunks(prefix_index: Tensor, rows_per_chunk: int) -> list[Tensor]:
    """Row numbers of chunks of at most `rows_per_chunk` rows, cut along prompts.

    Whole groups share a chunk where they fit; larger groups are cut.

    Raises:
        CalibrantError: rows_per_chunk is not a positive integer.

    >>> group_chunks(torch.tensor([5, 3, 5, 3, 8, 5]), 3)
    [tensor([0, 2, 5]), tensor([1, 3, 4])]
    """
    if not isinstance(rows_per_chunk, int) or isinstance(rows_per_chunk, bool) or rows_per_chunk < 1:
        raise CalibrantError(f"rows_per_chunk has to be a positive integer, got {rows_per_chunk!r}")
    which = torch.unique(prefix_index, return_inverse=True)[1]
    groups = which.argsort(stable=True).split(which.bincount().tolist())
    pieces = sorted((p for group in groups for p in group.split(rows_per_chunk)), key=len, reverse=True)
    chunks: list[list[Tensor]] = []
    for piece in pieces:
        fitting = [chunk for chunk in chunks if sum(map(len, chunk)) + len(piece) <= rows_per_chunk]
        fitting[0].append(piece) if fitting else chunks.append([piece])
    return [torch.cat(chunk) for chunk in chunks]
