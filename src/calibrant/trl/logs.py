"""What the trainer logs beside TRL's metrics."""

import warnings
from collections.abc import MutableSequence, Sequence


def replace_last(logged: MutableSequence[float], values: Sequence[float]) -> None:
    """Replaces the last values of a log, of bounded length, by these.

    >>> logged = [1.0, 2.0, 3.0]
    >>> replace_last(logged, [8.0, 9.0])
    >>> logged
    [1.0, 8.0, 9.0]
    """
    values = values[-len(logged) :]
    for i, value in enumerate(values, start=len(logged) - len(values)):
        logged[i] = value


def warn_of_range(outside: int, reward_range: Sequence[float], step: int) -> None:
    """Warns that rewards lie outside the reward range."""
    low, high = reward_range
    warnings.warn(
        f"{outside} rewards of step {step} lie outside the reward range [{low}, {high}]; reward dispersion is clipped "
        "there, so set reward_range to what the reward function can return (batch/reward_out_of_range counts them from "
        "here on)",
        stacklevel=3,
    )
