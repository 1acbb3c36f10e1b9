"""List the tasks, one per line: name, kind, splits, reward and its range, summary, source of the rows."""

import argparse

EXAMPLES = """example:
  calibrant tasks

Rows of a task that is not embedded come from the hub, or from the official files in --data-dir DIR: docs/tasks.md.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    pass


def run(options: argparse.Namespace) -> int:
    """Prints the table of tasks."""
    from calibrant.tasks import GENERIC, TASKS

    rows = []
    for task in (TASKS | GENERIC).values():
        low, high = task.reward_range
        reward = f"{task.reward_name} [{low:g}, {high:g}]"
        hubs = dict.fromkeys(hub.repository for hub in task.source.hubs.values()) if task.source else ()
        rows.append(
            (
                task.name,
                task.kind,
                ", ".join(task.splits),
                reward,
                task.summary,
                ", ".join(hubs) or ("your own (--data)" if task.schema else "embedded"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
