"""Which rollouts are right, where a method is not given `correct`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from calibrant.checks import check_reward_range
from calibrant.errors import CalibrantError
from calibrant.groups import RANGE_TOLERANCE
from calibrant.methods.inputs import SOURCES

BINARY = ((0.0, 1.0), (-1.0, 1.0))  # pairs of (wrong, right) that rewards may be, beside the ends of the reward range


def binary_verdicts(
    caller: str,
    rewards: Tensor,
    correct: Tensor | None,
    where: Tensor,
    reward_range: Sequence[float],
    otherwise: str = "",
) -> Tensor:
    """Whether each rollout is right, `[N, G]` float64: 1 right, 0 wrong, NaN unknown or not counted.

    Read from `correct` (1, 0, not finite where unknown) if it is given, else from binary rewards. Interpretation (c):
    rewards are binary if all that count in the batch are ends of the reward range, or all 0 and 1, or all -1 and 1,
    whichever fits first. Partial credit raises an error, to which `otherwise`, an alternative, is appended.

    >>> rewards = torch.tensor([[2.0, 0.0, torch.nan]])
    >>> binary_verdicts("f", rewards, None, torch.isfinite(rewards), (0.0, 2.0))
    tensor([[1., 0., nan]], dtype=torch.float64)
    """
    low, high = check_reward_range(caller, reward_range)
    if correct is not None:
        correct = torch.where(torch.isfinite(correct) & where, correct.detach().double(), torch.nan)
        odd = correct[(correct != 0) & (correct != 1) & ~correct.isnan()]
        if len(odd):
            raise CalibrantError(f"{caller}: correct has to be 1, 0 or NaN (unknown), got {odd[0].item():g}")
        return correct
    values = rewards.detach().double()
    for wrong, right in ((low, high), *BINARY):
        is_right, is_wrong = _near(values, right, right - wrong), _near(values, wrong, right - wrong)
        if (is_right | is_wrong | ~where).all():
            return torch.where(where, is_right.double(), torch.nan)
    outside = values[where & ~_near(values, low, high - low) & ~_near(values, high, high - low)][0].item()
    raise CalibrantError(
        f"{caller} needs binary rewards or the input 'correct' ({SOURCES['correct']}){otherwise}: a reward of "
        f"{outside:g} is neither end of the reward range [{low:g}, {high:g}]"
    )


def _near(values: Tensor, target: float, width: float) -> Tensor:
    return (values - target).abs() <= RANGE_TOLERANCE * width
