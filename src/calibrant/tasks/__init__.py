"""Tasks by name."""

from dataclasses import replace

from calibrant.errors import CalibrantError, nearest
from calibrant.options import DataOptions
from calibrant.tasks import (
    arithmetic,
    contests,
    gsm8k,
    hotpotqa,
    math500,
    narrativeqa,
    olympiadbench,
    places,
    qasper,
    training_sets,
)
from calibrant.tasks.base import Row, Task
from calibrant.tasks.generic import GENERIC
from calibrant.tasks.levels import read_levels, with_levels
from calibrant.tasks.own_data import OwnData, on_own_data
from calibrant.tasks.rewards import reward_set, with_rewards
from calibrant.user_code import import_object

__all__ = ["GENERIC", "TASKS", "Row", "Task", "chosen_task", "resolve", "training_task"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        places.TASK,
        arithmetic.TASK,
        narrativeqa.TASK,
        qasper.TASK,
        hotpotqa.TASK,
        math500.TASK,
        contests.AIME24,
        contests.AIME25,
        contests.AMC23,
        contests.MINERVA,
        olympiadbench.TASK,
        gsm8k.TASK,
        training_sets.DEEPSCALER,
        training_sets.OPENR1_MATH,
    )
}


def resolve(name: str) -> Task:
    """The task of a name, or a task object of the user's by its dotted path, e.g. `my_module.TASK`."""
    known = TASKS | GENERIC
    if name in known:
        return known[name]
    if "." not in name:
        raise CalibrantError(
            f"unknown task '{name}'{nearest(name, known)}; the tasks are {', '.join(known)}; or give the dotted path "
            "of a Task object"
        )
    task = import_object(name, "task")
    if not isinstance(task, Task):
        raise CalibrantError(f"task '{name}' has to be a calibrant.tasks.Task, got a {type(task).__name__}")
    return task


def training_task(task: Task) -> Task:
    """The task whose training split trains a policy for `task`: itself, or its `train_task`."""
    return resolve(task.train_task) if task.train_task else task


def chosen_task(options: DataOptions, *, training: bool = False) -> Task:
    """The task that the options of a command name, on the user's data and with the user's rewards if they name some.

    For `training`, --levels are those of the split "train" alone.
    """
    if getattr(options, "from_rollouts", None) and (options.data or options.reward_funcs):
        raise CalibrantError("--data and --reward-funcs are for sampled answers; leave them out with --from-rollouts")
    task = _on_data(resolve(options.task), options, training)
    if options.reward_funcs is not None:
        task = with_rewards(task, reward_set(task, options.reward_funcs, options.reward_weights))
    elif options.reward_weights is not None:
        raise CalibrantError("--reward-weights goes with --reward-funcs; name the functions too")
    given = getattr(options, "reward_range", None)
    return replace(task, reward_range=given) if given else task


def _on_data(task: Task, options: DataOptions, training: bool) -> Task:
    keep = read_levels(options.levels, training=training) if options.levels else None
    if options.data is None:
        for name in ("columns", "prompt_template", "test_share"):
            if getattr(options, name) is not None:
                raise CalibrantError(f"--{name.replace('_', '-')} goes with your own data; give --data too")
        return with_levels(task, keep) if keep else task
    if options.data_dir is not None:
        raise CalibrantError("give --data (your own data) or --data-dir (official files of a benchmark), not both")
    own = OwnData(options.data, options.columns or {}, options.prompt_template, options.test_share, keep)
    return on_own_data(task, own)
