"""Rows of an engine's batch as groups `[N, G]`, and back: in any order, with padding, groups of different sizes.

B is the number of rows. An engine may split one rollout over several rows (the turns of an agent): the last part stands
for it, and what is computed for the rollout goes to all of its rows.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from calibrant.errors import CalibrantError

T = TypeVar("T")


class Owner(NamedTuple):
    """The rollout that a row belongs to."""

    group: Hashable  # equal for the rollouts of one prompt
    rollout: int  # its number in the group
    part: int = 0  # the last one stands for the rollout


class RowLayout(NamedTuple):
    """Where the rows of a batch stand in groups of the largest size, G."""

    rows: Tensor  # [N, G], the row that stands for each rollout; -1 where a group has fewer
    slots: Tensor  # [B], the index n * G + g of each row's rollout; -1 for padding

    @property
    def where(self) -> Tensor:
        """Which rollouts there are, `[N, G]` boolean."""
        return self.rows >= 0

    @property
    def first_rows(self) -> list[int]:
        """The row of the first rollout of each group."""
        return self.rows[:, 0].tolist()

    @property
    def split(self) -> bool:
        """Whether a rollout has several rows."""
        return int((self.slots >= 0).sum()) > int(self.where.sum())

    def grouped(self, values: Tensor, fill: float = torch.nan) -> Tensor:
        """Values of rows, `[B, ...]`, as `[N, G, ...]`; `fill` where there is no rollout."""
        found = values[self.rows.clamp(min=0)]
        found[~self.where] = fill
        return found

    def listed(self, values: Sequence[T], fill: T) -> list[T]:
        """Values of rows as a list of N * G in group order."""
        return [values[row] if row >= 0 else fill for row in self.rows.flatten().tolist()]

    def scattered(self, values: Tensor, padding: Tensor) -> Tensor:
        """Values of rollouts, `[N, G, ...]`, as `[B, ...]`; those of `padding`, `[B, ...]`, in rows without a rollout.

        >>> layout = arrange([Owner("a", 1), None, Owner("a", 0)])
        >>> layout.scattered(torch.tensor([[10.0, 11.0]]), torch.zeros(3))
        tensor([11.,  0., 10.])
        """
        found = values.flatten(0, 1)[self.slots.clamp(min=0)]
        present = (self.slots >= 0).view(-1, *(1,) * (found.ndim - 1))
        return torch.where(present, found, padding.to(found))


def arrange(owners: Sequence[Owner | None]) -> RowLayout:
    """The layout of rows that belong to these rollouts; None is padding.

    Groups are in the order of their first row, the rollouts of a group by number, so that the order of rows does not
    decide which answer starts a cluster. Raises CalibrantError if two rows are the same part of one rollout.

    >>> arrange([Owner("b", 0), Owner("a", 1), None, Owner("a", 0)]).rows
    tensor([[ 0, -1],
            [ 3,  1]])
    """
    groups: dict[Hashable, dict[int, dict[int, int]]] = {}
    for row, owner in enumerate(owners):
        if owner is None:
            continue
        parts = groups.setdefault(owner.group, {}).setdefault(owner.rollout, {})
        if owner.part in parts:
            raise CalibrantError(
                f"rows {parts[owner.part]} and {row} are both part {owner.part} of rollout {owner.rollout} of the "
                f"group {owner.group!r:.60}; give each rollout of a group a number of its own"
            )
        parts[owner.part] = row
    size = max(map(len, groups.values()), default=0)
    rows, slots = torch.full((len(groups), size), -1), torch.full((len(owners),), -1)
    for n, rollouts in enumerate(groups.values()):
        for g, number in enumerate(sorted(rollouts)):
            parts = rollouts[number]
            rows[n, g] = parts[max(parts)]
            slots[list(parts.values())] = n * size + g
    return RowLayout(rows, slots)
