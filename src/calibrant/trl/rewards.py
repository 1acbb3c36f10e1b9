"""Reward functions, checked: an exception in a reward is never a reward."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch

from calibrant.errors import CalibrantError

Reward = Callable[..., Any]


def checked(function: Reward) -> Reward:
    """Wraps a TRL reward function so that what goes wrong in it is said in one sentence.

    The wrapped function takes TRL's keyword arguments and returns the same rewards: a float each, None or NaN for
    an unscorable rollout. An infinite reward becomes None.

    Raises (when called):
        CalibrantError: the function raised, returned another number of rewards than completions, or returned
            something that is not a number.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):

        @functools.wraps(function)
        async def asynchronous(**inputs: Any) -> list[float | None]:
            try:
                rewards = await function(**inputs)
            except Exception as error:
                raise _failed(name, error) from error
            return check_rewards(name, rewards, len(inputs["completions"]))

        return asynchronous

    @functools.wraps(function)
    def synchronous(**inputs: Any) -> list[float | None]:
        try:
            rewards = function(**inputs)
        except Exception as error:
            raise _failed(name, error) from error
        return check_rewards(name, rewards, len(inputs["completions"]))

    synchronous.__name__ = name
    return synchronous


def checked_all(reward_funcs: Any) -> Any:
    """Reward functions as a trainer takes them, one or a list; models and their names are left as they are."""
    if isinstance(reward_funcs, list):
        return [checked_all(function) for function in reward_funcs]
    plain = callable(reward_funcs) and not isinstance(reward_funcs, (str, torch.nn.Module))
    return checked(reward_funcs) if plain else reward_funcs


def unrewarded(completions: list[Any], **_: Any) -> list[float]:
    """Stands for a reward where a method reads none."""
    return [0.0] * len(completions)


def check_rewards(name: str, rewards: Any, count: int) -> list[float | None]:
    """Turns what a reward function returned into a list of floats, None for unscorable.

    Raises:
        CalibrantError: not one number (or None) for each completion.
    """
    try:
        values = rewards.tolist() if hasattr(rewards, "tolist") else list(rewards)
    except TypeError:
        raise CalibrantError(
            f"the reward function '{name}' returned {type(rewards).__name__}; return one number a completion, as a list"
        ) from None
    if len(values) != count:
        raise CalibrantError(
            f"the reward function '{name}' returned {len(values)} rewards for {count} completions; "
            "return one a completion, None for one that cannot be scored"
        )
    return [_number(name, i, value) for i, value in enumerate(values)]


def _number(name: str, i: int, value: Any) -> float | None:
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        raise CalibrantError(
            f"the reward function '{name}' returned {value!r:.60} for completion {i}; return a number, "
            "or None where it cannot be scored"
        ) from None
    return number if math.isfinite(number) else None


def _failed(name: str, error: Exception) -> CalibrantError:
    reason = (str(error).strip() or "no message").splitlines()[0]
    return CalibrantError(
        f"the reward function '{name}' raised {type(error).__name__}: {reason}; mend it, or return None for "
        "completions that it cannot score"
    )
