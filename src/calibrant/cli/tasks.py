"""List the tasks, one line each: name, reward range, what it is."""

import argparse

EXAMPLES = """example:
  calibrant tasks
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(options: argparse.Namespace) -> int:
    """Prints the table."""
    from calibrant.tasks import TASKS

    for name, task in TASKS.items():
        low, high = task.reward_range
        print(f"{name:<12}  reward [{low:g}, {high:g}]  {task.summary}")
    return 0
