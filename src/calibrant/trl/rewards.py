"""Reward functions, checked: an exception in a reward is never a reward."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.utils import is_async_callable

from calibrant.trl.functions import Guard

WANTED = "return one number per completion, or None for one that cannot be scored"


@contextmanager
def checked_rewards(trainer: Any) -> Iterator[None]:
    """Guards the trainer's reward functions while it calls them; afterwards they are the user's own again."""
    own = trainer.reward_funcs
    trainer.reward_funcs = [checked(f, name) for f, name in zip(own, trainer.reward_func_names, strict=True)]
    try:
        yield
    finally:
        trainer.reward_funcs = own


def checked(function: Any, name: str | None = None) -> Any:
    """A TRL reward function whose rewards are floats, None for unscorable ones; models are returned as they are.

    Raises (when called):
        CalibrantError: the function raised, returned another number of rewards than completions, or returned
            something that is not a number.
    """
    if isinstance(function, torch.nn.Module):
        return function
    guard = Guard(function, "reward function", WANTED, name)
    if not is_async_callable(function):
        return lambda **inputs: check_rewards(guard, guard(**inputs), len(inputs["completions"]))

    async def asynchronous(**inputs: Any) -> list[float | None]:
        try:
            rewards = await function(**inputs)
        except Exception as error:
            raise guard.failed(error) from error
        return check_rewards(guard, rewards, len(inputs["completions"]))

    return asynchronous


def unrewarded(completions: Sequence[Any], **_: Any) -> list[float]:
    """Stands for a reward where a method reads none."""
    return [0.0] * len(completions)


def check_rewards(guard: Guard, rewards: Any, count: int) -> list[float | None]:
    """What a reward function returned as a list of floats, None for unscorable.

    Raises:
        CalibrantError: not one number (or None) for each completion.
    """
    return [_number(guard, i, value) for i, value in enumerate(guard.values(rewards, count, "rewards"))]


def _number(guard: Guard, i: int, value: Any) -> float | None:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError(value)
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise guard.refused(value, f" for completion {i}") from None
    return number if math.isfinite(number) else None
