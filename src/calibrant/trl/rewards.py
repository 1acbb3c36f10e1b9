"""Reward functions, checked: an exception in a reward is never a reward."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import is_async_callable

from calibrant.errors import CalibrantError
from calibrant.trl.functions import Guard
from calibrant.trl.messages import as_text

Reward = Callable[..., Any]

WANTED = "return one number per completion, or None for one that cannot be scored"


class Sampled(NamedTuple):
    """What TRL hands to its reward functions, and what they return."""

    rewards: Tensor  # [N * G, F] of all processes, one column per reward function
    columns: list[dict[str, Any]]  # per rollout of this process: prompt and completion as text, number of tokens
    logged: set[str]  # names of metrics and columns that they log


@contextmanager
def recorded_rewards(trainer: GRPOTrainer) -> Iterator[list[Sampled]]:
    """Records each call of the trainer's `_calculate_rewards`, its own or another, with guarded reward functions."""
    calls: list[Sampled] = []
    replaced, original = vars(trainer).get("_calculate_rewards"), trainer._calculate_rewards

    def calculate(inputs: object, prompts: list[object], completions: list[object], ids: list[list[int]]) -> Tensor:
        own, names = trainer.reward_funcs, trainer.reward_func_names
        trainer.reward_funcs = [checked(function, name) for function, name in zip(own, names, strict=True)]
        try:
            rewards: Tensor = original(inputs, prompts, completions, ids)
        finally:
            trainer.reward_funcs = own
        columns = [
            {"observed_prompt": as_text(prompt), "completion": as_text(completion), "num_tokens": len(tokens)}
            for prompt, completion, tokens in zip(prompts, completions, ids, strict=True)
        ]
        calls.append(Sampled(rewards, columns, {*trainer._pending_extra_logs, *trainer._pending_metrics}))
        return rewards

    trainer._calculate_rewards = calculate
    try:
        yield calls
    finally:
        del trainer._calculate_rewards
        if replaced is not None:
            trainer._calculate_rewards = replaced


def checked(function: Reward, name: str | None = None) -> Reward:
    """A TRL reward function that returns floats, None for unscorable completions; reward models stay as they are.

    It raises a CalibrantError if the function raised, or did not return one number (or None) per completion.
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


def unrewarded(completions: Sequence[object], **_: object) -> list[float]:
    """A reward function for methods that read no rewards."""
    return [0.0] * len(completions)


def check_rewards(guard: Guard, rewards: object, count: int) -> list[float | None]:
    """What a reward function returned as a list of floats, None for unscorable completions."""
    return [_number(guard, i, value) for i, value in enumerate(guard.values(rewards, count, "rewards"))]


def _number(guard: Guard, i: int, value: Any) -> float | None:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError(value)
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise guard.refused(value, f" for completion {i}") from None
    return number if math.isfinite(number) else None


def task_reward_index(wanted: str | None, names: Sequence[str]) -> int:
    """The index of the reward function that signals read: of that name, or the first one."""
    if wanted is not None and wanted not in names:
        raise CalibrantError(f"no reward function is named '{wanted}'; task_reward takes one of: {', '.join(names)}")
    return names.index(wanted) if wanted is not None else 0


def warn_of_range(outside: int, reward_range: Sequence[float], step: int) -> None:
    """Warns that rewards lie outside the reward range."""
    low, high = reward_range
    warnings.warn(
        f"{outside} rewards of step {step} lie outside the reward range [{low}, {high}]; reward dispersion is clipped "
        "there, so set reward_range to what the reward function can return (batch/reward_out_of_range counts them from "
        "here on)",
        stacklevel=3,
    )
