"""Reward functions, checked: an exception in a reward is never a reward, and says in which row it was raised."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from calibrant.errors import CalibrantError
from calibrant.user_code import Guard, is_async

Reward = Callable[..., Any]
"""TRL's: `(prompts=, completions=, completion_ids=, **columns)` -> one number per completion, None if unscorable."""

WANTED = "return one number per completion, or None for one that cannot be scored"


def checked(function: Reward, name: str | None = None) -> Reward:
    """A TRL reward function that returns floats, None for unscorable completions; reward models stay as they are.

    It raises a CalibrantError if the function raised, or did not return one number (or None) per completion. After an
    exception the completions are scored one by one to find the one that raised it.
    """
    if isinstance(function, torch.nn.Module):
        return function
    guard = Guard(function, "reward function", WANTED, name)
    if is_async(function):

        async def asynchronous(**inputs: Any) -> list[float | None]:
            try:
                rewards = await function(**inputs)
            except Exception as error:
                raise _failed(guard, error, "") from error
            return check_rewards(guard, rewards, inputs)

        return asynchronous

    def synchronous(**inputs: Any) -> list[float | None]:
        try:
            rewards = guard.call(**inputs)
        except Exception as error:
            raise _failed(guard, error, _place_of(guard, error, inputs)) from error
        return check_rewards(guard, rewards, inputs)

    return synchronous


def check_rewards(guard: Guard, rewards: object, inputs: Mapping[str, Any]) -> list[float | None]:
    """What a reward function returned for `inputs`, as a list of floats, None for unscorable completions."""
    values = guard.values(rewards, len(inputs["completions"]), "rewards")
    return [_number(guard, value, _place(inputs, i)) for i, value in enumerate(values)]


def _number(guard: Guard, value: Any, place: str) -> float | None:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError(value)
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise guard.refused(value, place) from None
    return number if math.isfinite(number) else None


def _failed(guard: Guard, error: Exception, place: str) -> CalibrantError:
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
        guard = Guard(guard.function, guard.role, "add **kwargs to its parameters: it gets every column", guard.name)
    return guard.failed(error, place)


def _place(inputs: Mapping[str, Any], i: int) -> str:
    ids = inputs.get("prompt_id")
    return f" for completion {i}" + (f" of the row '{ids[i]}'" if ids else "")


def _place_of(guard: Guard, error: Exception, inputs: Mapping[str, Any]) -> str:
    """The completion that alone raises the same type of exception; "" if there is none, or only one."""
    count = len(inputs["completions"])
    for i in range(count):
        one = {k: [v[i]] if isinstance(v, list) and len(v) == count else v for k, v in inputs.items()}
        try:
            guard.call(**one)
        except Exception as again:
            if type(again) is type(error):
                return _place(inputs, i)
    return ""
