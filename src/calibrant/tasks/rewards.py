"""Reward functions by name: TRL's own, the task's, and the user's by dotted path.

They are called as TRL calls them: `(prompts=, completions=, completion_ids=, **columns)`, where columns are those of
the user's data, `prompt_id`, `references` (lists of right answers), and `solution` (the first of them) unless the data
have a column of that name.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, NamedTuple

import torch

from calibrant.advantages import total_rewards
from calibrant.errors import CalibrantError, nearest
from calibrant.tasks.base import Row, Task
from calibrant.tasks.checked_rewards import Reward, checked
from calibrant.user_code import callable_name, import_object, is_async

TASK = "task_reward"  # the name of the task's own reward
UNKNOWN = (-math.inf, math.inf)  # the range of rewards that nothing says
TRL_RANGES = {
    "accuracy_reward": (0.0, 1.0),
    "reasoning_accuracy_reward": (0.0, 1.0),
    "think_format_reward": (0.0, 1.0),
    "get_soft_overlong_punishment": (-1.0, 0.0),
}
"""TRL's reward functions, as `trl grpo` names them, and the ranges of their rewards."""
READ_BY_TRL = {"prompt", "prompts", "completion", "completions", "completion_ids", "prompt_id", "references"}
READ_BY_TRL |= {"trainer_state", "log_extra", "log_metric", "environments"}
"""Columns of the user's data that reward functions do not get, since TRL hands over others under these names."""


class RewardFunction(NamedTuple):
    """A reward function and the lowest and highest reward that it returns."""

    name: str
    function: Reward
    range: tuple[float, float]


@dataclass(frozen=True)
class RewardSet:
    """Reward functions in place of a task's own reward.

    The policy is trained on the weighted sum, as in TRL. Signals and reward dispersion read one of them: the task's own
    reward if it is among them, else the first one.
    """

    functions: tuple[RewardFunction, ...]
    weights: tuple[float, ...]

    @property
    def read(self) -> RewardFunction:
        """The reward function that signals read."""
        return next((x for x in self.functions if x.name == TASK), self.functions[0])


def reward_set(task: Task, names: Sequence[str], weights: Sequence[float] | None) -> RewardSet:
    """The reward functions of `--reward-funcs` and their weights, 1 by default."""
    if len(set(names)) < len(names):
        raise CalibrantError(f"--reward-funcs names '{max(names, key=list(names).count)}' twice; give each one once")
    if weights is not None and len(weights) != len(names):
        raise CalibrantError(
            f"--reward-weights gives {len(weights)} numbers for {len(names)} reward functions; give one for each"
        )
    functions = tuple(_load(task, name) for name in names)
    shown = [function.name for function in functions]
    if len(set(shown)) < len(shown):
        twice = max(shown, key=shown.count)
        raise CalibrantError(
            f"two reward functions have the name '{twice}', under which rewards are logged; rename one"
        )
    return RewardSet(functions, tuple(weights or [1.0] * len(names)))


def _load(task: Task, name: str) -> RewardFunction:
    if name == TASK:
        if task.kind == "chat":
            raise CalibrantError(f"the task '{task.name}' has no reward of its own; leave out '{TASK}'")
        return RewardFunction(TASK, own_reward(task), task.reward_range)
    if name in TRL_RANGES:
        function = _of_trl(name)
        return RewardFunction(callable_name(function), function, TRL_RANGES[name])
    if "." not in name:
        known = [TASK, *TRL_RANGES]
        raise CalibrantError(
            f"unknown reward function '{name}'{nearest(name, known)}; there are {', '.join(known)}; or give the dotted "
            "path of a function, e.g. my_rewards.brevity for a function of my_rewards.py in this folder"
        )
    function = import_object(name, "reward function")
    if not callable(function):
        raise CalibrantError(f"reward function '{name}' has to be a function, got a {type(function).__name__}")
    return RewardFunction(callable_name(function), function, _range(name, function))


def _range(name: str, function: Reward) -> tuple[float, float]:
    given = getattr(function, "reward_range", UNKNOWN)
    try:
        low, high = map(float, given)
        if not low < high:
            raise ValueError
    except (TypeError, ValueError):
        raise CalibrantError(f"{name}.reward_range is {given!r:.60}; it has to be (lowest, highest)") from None
    return low, high


def _of_trl(name: str) -> Reward:
    """A reward function of TRL's command line, which reads turns; a policy without a chat template writes texts."""
    from trl import rewards

    if name == "get_soft_overlong_punishment":  # with the values of `trl grpo`
        punishment: Reward = rewards.get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256)
        return punishment
    function = getattr(rewards, name)

    @wraps(function)
    def with_turns(completions: list[Any], **inputs: Any) -> Any:
        turns = [[{"role": "assistant", "content": c}] if isinstance(c, str) else c for c in completions]
        return function(completions=turns, **inputs)

    return with_turns


def own_reward(task: Task) -> Reward:
    """The task's own reward as a function that TRL calls."""

    def task_reward(completions: list[Any], references: list[list[str]], **_: object) -> list[float | None]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return task.reward_batch([task.extract(text) for text in texts], references)

    return task_reward


def with_rewards(task: Task, rewards: RewardSet) -> Task:
    """The task with reward functions in place of its own reward."""
    names = " + ".join(f"{w:g} x {x.name}" for x, w in zip(rewards.functions, rewards.weights, strict=True))
    return replace(task, rewards=rewards, reward_range=rewards.read.range, reward_name=names)


def trained_rewards(task: Task, rows: Sequence[Row]) -> list[Reward | str]:
    """The reward functions that train a policy on a task; none for a task without a reward."""
    if task.rewards:
        return [with_columns(x, rows) for x in task.rewards.functions]
    return [] if task.kind == "chat" else [own_reward(task)]


def with_columns(about: RewardFunction, rows: Sequence[Row]) -> Reward:
    """A reward function that also gets the columns of the rows, by their `prompt_id`."""
    columns = {row["prompt_id"]: _columns(row) for row in rows}
    function = about.function

    def inputs_of(given: Mapping[str, Any]) -> dict[str, Any]:
        own = [columns.get(prompt_id, {}) for prompt_id in given["prompt_id"]]
        names = dict.fromkeys(name for row in own for name in row)
        return {name: [row.get(name) for row in own] for name in names} | dict(given)

    async def asynchronous(**given: Any) -> Any:
        return await function(**inputs_of(given))

    def synchronous(**given: Any) -> Any:
        return function(**inputs_of(given))

    result: Any = asynchronous if is_async(function) else synchronous
    result.__name__, result.reads_policy = about.name, reads_policy(function)
    return result


def reads_policy(function: Reward) -> bool:
    """Whether a reward function is given the policy, by its attribute of that name, and can be computed in training."""
    return bool(getattr(function, "reads_policy", False))


def _columns(row: Row) -> dict[str, Any]:
    solution = {"solution": row["references"][0]} if row["references"] else {}
    return solution | {str(k): v for k, v in row.get("columns", {}).items() if k not in READ_BY_TRL}


def rewards_of(
    rewards: RewardSet,
    rows: Sequence[Row],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    ids: Sequence[list[int]],
) -> dict[str, list[float | None]]:
    """The columns `rewards/NAME` of B completions, `reward`, which signals read, and `total_reward`, their sum.

    `rows` are B questions, `prompts` and `completions` as TRL has them, `ids` the tokens of completions. Rewards that
    read the policy are left out.
    """
    given: dict[str, Any] = {
        "prompts": list(prompts),
        "completions": list(completions),
        "completion_ids": list(ids),
        "prompt_id": [row["prompt_id"] for row in rows],
        "references": [row["references"] for row in rows],
        "trainer_state": None,
        "log_extra": lambda name, values: None,
        "log_metric": lambda name, value: None,
    }
    values: dict[str, list[float | None]] = {}
    known = [(x, w) for x, w in zip(rewards.functions, rewards.weights, strict=True) if not reads_policy(x.function)]
    for about, _ in known:
        returned = checked(with_columns(about, rows), about.name)(**given)
        values[about.name] = asyncio.run(returned) if asyncio.iscoroutine(returned) else returned
    columns = {f"rewards/{name}": x for name, x in values.items()}
    if not known:
        return {"reward": [None] * len(completions)}
    by_function = torch.tensor(
        [[math.nan if x is None else x for x in v] for v in values.values()], dtype=torch.float64
    )
    weights = torch.tensor([weight for _, weight in known], dtype=torch.float64)
    total = [None if math.isnan(x) else x for x in total_rewards(by_function.T[None], weights)[0].tolist()]
    return {"reward": values.get(rewards.read.name, total), "total_reward": total, **columns}


def require_reward(task: Task) -> None:
    """Raises CalibrantError for a task without a reward that can be computed without a trainer."""
    if task.kind == "chat" and task.rewards and all(reads_policy(x.function) for x in task.rewards.functions):
        raise CalibrantError(
            f"the reward function '{task.rewards.read.name}' reads the policy that is trained, so that evaluation and "
            "analysis cannot compute it; give another one beside it, or train with --no-evaluation"
        )
    if task.kind == "chat" and task.rewards is None:
        raise CalibrantError(f"the task '{task.name}' has no reward of its own; give --reward-funcs")


def require_range(task: Task, reader: str) -> None:
    """Raises CalibrantError if the range of rewards is not known, which `reader` needs for reward dispersion."""
    if not all(map(math.isfinite, task.reward_range)):
        name = task.rewards.read.name if task.rewards else task.name
        raise CalibrantError(
            f"{reader} reads reward dispersion, and nothing says what '{name}' can return; give --reward-range "
            f"LOW HIGH, or write {name}.reward_range = (LOW, HIGH) below the function"
        )
