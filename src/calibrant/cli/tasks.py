"""List the tasks, one per line: name, kind, splits, reward and its range, summary, source of the rows.

With a name, what there is to know of that task: data, prompts, right answers, rewards, metrics, defaults. Three sample
prompts are shown where the data can be reached. The dotted path of your own Task object works the same way.
"""

import argparse
from collections.abc import Iterator
from inspect import getdoc
from typing import TYPE_CHECKING

from calibrant.errors import CalibrantError
from calibrant.options import DataOptions, add_arguments, read

if TYPE_CHECKING:
    from calibrant.tasks import Task

EXAMPLES = """examples:
  calibrant tasks
  calibrant tasks places
  calibrant tasks math500 --data-dir MATH
  calibrant tasks reading --data pupils.csv --columns question=Frage,answers=Antwort,context=Text
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the optional task, and the options of its data and rewards."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="name, or dotted path of a Task object")
    add_arguments(parser, DataOptions, without=("task", "max_prompt_length"))


def run(options: argparse.Namespace) -> int:
    """Prints the table of tasks, or what there is to know of one."""
    given = {name: value for name, value in vars(options).items() if name != "name"}
    if options.name is None and given:
        raise CalibrantError(
            f"--{next(iter(given)).replace('_', '-')} belongs to one task; name it: calibrant tasks NAME"
        )
    if options.name is None:
        print_tasks()
        return 0
    settings = read(DataOptions, given | {"task": options.name})
    from calibrant.tasks import chosen_task

    task = chosen_task(settings)
    for line in (*about(task), *samples(task, settings)):
        print(line)
    return 0


def print_tasks() -> None:
    """Prints the table of tasks."""
    from calibrant.tasks import GENERIC, TASKS

    rows = [
        (task.name, task.kind, ", ".join(task.splits), _reward(task), task.summary, _source(task))
        for task in (TASKS | GENERIC).values()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def about(task: "Task") -> Iterator[str]:
    """Lines on the definition of a task."""
    yield f"{task.name}: {task.summary}\n"
    yield f"data:       {_source(task)}"
    for role, column in task.schema.roles.items() if task.schema else ():
        need = "" if column.required else ", optional"
        yield f"  {role:<10}{column.words}{need} (column {' or '.join(column.names)})"
    if task.source:
        yield f"  official files: {task.source.schema}; from {task.source.url}"
    yield f"splits:     {', '.join(task.splits)}" + (f"; trained on {task.train_task}" if task.train_task else "")
    yield f"answer:     {_first_sentence(task.extract)}"
    yield f"reward:     {_reward(task)}"
    metrics = [*task.metrics, *task.pooled, *(["accuracy"] if task.kind != "chat" else [])]
    yield f"metrics:    {', '.join(metrics) or 'the reward functions'}"
    yield f"signals:    read the {task.meaning}" + (" as a whole" if task.meaning == "completion" else "")
    yield f"completion: at most {task.max_completion_length} tokens by default"


def samples(task: "Task", settings: DataOptions) -> Iterator[str]:
    """Lines with three prompts and their right answers, or the reason why there are none."""
    from pathlib import Path

    from calibrant.tasks import training_task
    from calibrant.tasks.examples import right_answers, with_short_context

    source, folder = training_task(task), Path(settings.data_dir) if settings.data_dir else None
    try:
        rows = source.load(source.splits[0], 3, 0, data_dir=folder)
    except CalibrantError as error:
        if settings.data or settings.data_dir:
            raise
        yield f"\nno sample prompts: {error}"
        return
    scored = task.rewards is not None or task.kind != "chat"
    right = right_answers(task, rows) if scored else [[] for _ in rows]
    for number, (row, lines) in enumerate(zip(rows, right, strict=True), 1):
        yield f"\n== prompt {number} of the split {source.splits[0]}: '{row['prompt_id']}'"
        yield from (with_short_context(row), "== end of the prompt", *lines)


def _reward(task: "Task") -> str:
    low, high = task.reward_range
    return f"{task.reward_name} [{low:g}, {high:g}]" if task.kind != "chat" or task.rewards else "--reward-funcs"


def _source(task: "Task") -> str:
    hubs = dict.fromkeys(hub.repository for hub in task.source.hubs.values()) if task.source else ()
    return ", ".join(hubs) or ("your own (--data)" if task.schema else "embedded")


def _first_sentence(function: object) -> str:
    return (getdoc(function) or "the completion").partition("\n")[0]
