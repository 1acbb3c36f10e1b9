"""The rewards of a batch, recorded as TRL computes them."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from trl import GRPOTrainer

from calibrant.errors import CalibrantError
from calibrant.tasks.checked_rewards import checked
from calibrant.text.messages import as_text


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
        bound = [with_policy(function, trainer) for function in own]
        trainer.reward_funcs = [checked(function, name) for function, name in zip(bound, names, strict=True)]
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


def with_policy(function: Callable[..., Any], trainer: GRPOTrainer) -> Callable[..., Any]:
    """A reward function whose attribute `reads_policy` is true, with the policy and its tokenizer; others unchanged."""
    given = function.keywords if isinstance(function, partial) else {}
    inner = function.func if isinstance(function, partial) else function
    if not getattr(inner, "reads_policy", False) or "policy" in given:
        return function
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return partial(function, policy=policy, tokenizer=trainer.processing_class)


def unrewarded(completions: Sequence[object], **_: object) -> list[float]:
    """A reward function for methods that read no rewards."""
    return [0.0] * len(completions)


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
