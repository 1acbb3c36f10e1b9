"""Rows of a batch as groups, and back."""

import random

import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.layout import Owner, arrange


def shuffled_batch(seed):
    """Ragged groups whose rollouts have one to three rows, with padding, shuffled; values say which is which."""
    draw = random.Random(seed)
    owners = [None] * draw.randint(0, 4)
    for group in range(draw.randint(1, 5)):
        for rollout in draw.sample(range(20), draw.randint(1, 6)):
            owners += [Owner(f"prompt {group}", rollout, part) for part in range(draw.randint(1, 3))]
    draw.shuffle(owners)
    return owners


def by_hand(owners):
    """The rows of each group in order of rollout, by loops."""
    names = list(dict.fromkeys(owner.group for owner in owners if owner))
    groups = []
    for name in names:
        mine = [(owner.rollout, owner.part, row) for row, owner in enumerate(owners) if owner and owner.group == name]
        groups.append([max(x for x in mine if x[0] == number)[2] for number in sorted({x[0] for x in mine})])
    return groups


@pytest.mark.parametrize("seed", range(30))
def test_rows_in_any_order_become_groups_and_go_back(seed):
    owners = shuffled_batch(seed)
    layout, groups = arrange(owners), by_hand(owners)
    size = max(map(len, groups))
    assert layout.rows.tolist() == [rows + [-1] * (size - len(rows)) for rows in groups]
    values = torch.arange(len(owners), dtype=torch.float64)
    grouped = layout.grouped(values)
    assert torch.equal(grouped.nan_to_num(-1.0).long(), layout.rows)
    assert layout.listed([str(i) for i in range(len(owners))], "") == [
        "" if row < 0 else str(row) for row in layout.rows.flatten().tolist()
    ]
    back = layout.scattered(grouped, torch.full((len(owners),), -7.0))
    for row, owner in enumerate(owners):
        same = [i for i, other in enumerate(owners) if owner and other and other[:2] == owner[:2]]
        last = max(same, key=lambda i: owners[i].part) if same else -7
        assert back[row] == last
    assert layout.split == any(owner and owner.part for owner in owners)


def test_values_per_token_keep_their_axis():
    layout = arrange([Owner(0, 1), Owner(1, 0), Owner(0, 0), None])
    tokens = torch.arange(12.0).view(4, 3)
    grouped = layout.grouped(tokens, fill=0.0)
    assert grouped.tolist() == [[[6, 7, 8], [0, 1, 2]], [[3, 4, 5], [0, 0, 0]]]
    assert torch.equal(layout.scattered(grouped, tokens), tokens)
    assert not layout.split
    assert layout.first_rows == [2, 1]


def test_the_values_of_the_batch_are_not_changed():
    values = torch.zeros(2)
    arrange([Owner(0, 0), Owner(1, 0)]).grouped(values)[0] = 1.0
    assert values.tolist() == [0.0, 0.0]


def test_two_rows_that_are_the_same_part_of_a_rollout_are_refused():
    with pytest.raises(CalibrantError, match="rows 0 and 2 are both part 0 of rollout 3 of the group 'a'"):
        arrange([Owner("a", 3), Owner("a", 4), Owner("a", 3)])
