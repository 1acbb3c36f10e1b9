"""From a source to the rows of a task."""

import random
from collections.abc import Callable
from pathlib import Path

from calibrant.tasks.base import Load, Row, check_split
from calibrant.tasks.sources import Item, Source, read


def loader(name: str, source: Source, splits: tuple[str, ...], row_of: Callable[[Item], Row]) -> Load:
    """The `load` of a task whose rows come from a source.

    Args:
        name: of the task.
        source: where its rows come from.
        splits: that it has.
        row_of: a question -> a row.
    """

    def load(split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
        """Questions of a split in an order that the seed decides; all of them when size is None or larger.

        Raises:
            CalibrantError: another split, or no data.
        """
        check_split(name, split, splits)
        items, _ = read(name, source, split, data_dir)
        random.Random(f"{name} {split} {seed}").shuffle(items)
        return [row_of(item) for item in items[:size]]

    return load
