"""Levels of difficulty, e.g. those of MATH, 1 to 5."""

import re
from collections.abc import Callable
from dataclasses import replace

from calibrant.errors import CalibrantError
from calibrant.tasks.base import Task, loader
from calibrant.tasks.maths import maths_row

Keep = Callable[[str, str], bool]  # of the level of a row and its split


def read_levels(text: str, *, training: bool = False) -> Keep:
    """Whether the level of a row, `3` or `Level 3`, is among levels such as `3-5` or `1,2`.

    For `training` levels are those of the split "train", as what is trained on some of them is tested on all.

    >>> keep = read_levels("1,3-5", training=True)
    >>> [keep(level, "train") for level in ("Level 3", "2", "5", "Level ?")]
    [True, False, True, False]
    >>> keep("2", "test"), read_levels("1,3-5")("2", "test")
    (True, False)
    """
    kept: set[int] = set()
    for part in text.split(","):
        bounds = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if not bounds or int(bounds[2] or bounds[1]) < int(bounds[1]):
            raise CalibrantError(f"--levels '{text}' are no levels; give e.g. 3-5 or 1,2")
        kept.update(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1))

    def keep(level: str, split: str) -> bool:
        if training and split != "train":
            return True
        number = re.search(r"\d+", level)
        return number is not None and int(number[0]) in kept

    return keep


def with_levels(task: Task, keep: Keep) -> Task:
    """MATH with problems of some levels alone, by the field `level` of its files."""
    if task.source is None or task.name != "math500":
        raise CalibrantError(
            f"--levels goes with math500, or with --task maths and your own data, not with '{task.name}'"
        )
    source = replace(task.source, keep=lambda record, split: keep(str(record.get("level") or ""), split))
    return replace(task, source=source, load=loader(task.name, source, maths_row))
