"""Loads the rows of a task from its source."""

import random
from collections.abc import Callable
from pathlib import Path

from calibrant.tasks.base import Load, Row, check_split
from calibrant.tasks.sources import Item, Source, read_items


def loader(name: str, source: Source, splits: tuple[str, ...], row_of: Callable[[Item], Row]) -> Load:
    """The `load` function of a task from its source, in an order that depends on the seed."""

    def load(split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
        check_split(name, split, splits)
        items, _ = read_items(name, source, split, data_dir)
        random.Random(f"{name} {split} {seed}").shuffle(items)
        return [row_of(item) for item in items[:size]]

    return load
