"""List the tasks, one per line: name, kind, splits, reward and its range, summary, source of the rows."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibrant.tasks.base import Task

EXAMPLES = """example:
  calibrant tasks

Rows of a task that is not embedded come from the hub, or from the official files in --data-dir DIR: docs/tasks.md.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares nothing: the command has no options."""


def run(options: argparse.Namespace) -> int:
    """Prints the table."""
    from calibrant.tasks import TASKS

    rows = [(t.name, t.kind, ", ".join(t.splits), _reward(t), t.summary, _data(t)) for t in TASKS.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _reward(task: "Task") -> str:
    low, high = task.reward_range
    return f"{task.reward_name} [{low:g}, {high:g}]"


def _data(task: "Task") -> str:
    if task.source is None:
        return "embedded"
    return ", ".join(dict.fromkeys(at.repository for at in task.source.hubs.values()))
