"""Finds the rows that a name stands for: in a file, a folder, a pattern of file names, or a data set of the hub."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from calibrant.errors import CalibrantError
from calibrant.rollouts.files import HINTS
from calibrant.rollouts.tables import RowBlock, blocks_of, blocks_of_rows
from calibrant.tasks.files import COMPRESSED, KINDS, kind_of
from calibrant.tasks.own_source import hub_splits, is_hub_name

RUNS = ("rollouts/step-*.parquet", "completions/*.parquet")
"""Files of rollouts below the directory of a run: of `calibrant train`, and of TRL with `log_completions`."""

PATTERNS = (*RUNS, *(f"*{kind}{end}" for kind in (".parquet", ".jsonl", ".csv", ".json") for end in ("", *COMPRESSED)))
"""Files that are looked for in a folder; those of the first pattern that matches are read."""


class RowSource(NamedTuple):
    """Rows from one place."""

    name: str  # a path, or NAME, SPLIT of a data set of the hub
    path: Path | None = None
    split: tuple[str, str] | None = None  # name on the hub and split

    @property
    def origin(self) -> str:
        """The name in error messages."""
        return f"'{self.name}'"

    @property
    def size(self) -> int:
        """The bytes of the rows, estimated: eight times those of a compressed file, 2 GB of the hub."""
        if self.path is None:
            return 2 * 2**30
        packed = self.path.suffix in (*COMPRESSED, ".parquet")
        return self.path.stat().st_size * (8 if packed else 1)

    def blocks(self) -> Iterator[RowBlock]:
        """The rows, block by block."""
        if self.path is not None:
            yield from blocks_of(self.path)
        elif self.split is not None:
            rows = hub_splits(self.split[0], "FILE")[self.split[1]]()
            yield from blocks_of_rows((row.record for row in rows), self.origin)


def find_sources(given: str) -> list[RowSource]:
    """The sources of rows that `given` names, in order; CalibrantError where there is none."""
    path = Path(given)
    if path.is_dir():
        paths = _in_folder(path)
    elif path.exists():
        paths = [path]
    elif any(sign in given for sign in "*?["):
        paths = [Path(name) for name in sorted(glob.glob(given, recursive=True)) if Path(name).is_file()]
        if not paths:
            raise CalibrantError(f"no file matches '{given}'; give another pattern, a file, or a folder")
    elif "/" in given and is_hub_name(given):
        return [RowSource(f"{given}, {split}", split=(given, split)) for split in hub_splits(given, "FILE")]
    else:
        kinds = ", ".join(KINDS)
        raise CalibrantError(
            f"no rollout file at '{given}'; give a file ({kinds}, or .gz or .zst of them), a folder, a pattern, or the "
            "NAME/NAME of a data set of the hub"
        )
    for file in paths:
        if kind_of(file) not in KINDS:
            hint = HINTS.get(file.suffix, "convert it to one of them")
            raise CalibrantError(f"'{file}' is none of the formats that are read, {', '.join(KINDS)}; {hint}")
    return [RowSource(str(file), file) for file in paths]


def _in_folder(folder: Path) -> list[Path]:
    """The files of the first pattern that matches, in the order of their names."""
    for pattern in PATTERNS:
        if paths := sorted(path for path in folder.glob(pattern) if path.is_file() and path.name != "manifest.json"):
            return paths
    raise CalibrantError(
        f"'{folder}' holds no rollouts: looked for {', '.join(PATTERNS[:4])} and others; name a file, or a pattern "
        f"such as '{folder}/*/*.jsonl'"
    )
