"""The rollout file: one row a rollout, the same from training, evaluation and the user's own tools."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.errors import CalibrantError
from calibrant.files import read_json_lines, write_json_lines, write_with
from calibrant.rollouts.columns import COLUMNS, READERS


def write_rollouts(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes rows as Parquet, or as JSON Lines where the name ends in `.jsonl`, whole or not at all.

    Args:
        path: the file.
        rows: one mapping a rollout, at least `prompt_id` and `completion`, and `reward` or `correct`; a key that
            is not in `COLUMNS` becomes a column of its own, of floats if its values are numbers and of texts else.

    Returns:
        The path written.
    """
    rows = [dict(row) for row in rows]
    if str(path).endswith(".jsonl"):
        return write_json_lines(path, rows)
    further = sorted({key for row in rows for key in row} - set(COLUMNS))
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in COLUMNS.items()}
    table = pa.table(columns | {name: _further([row.get(name) for row in rows]) for name in further})
    return write_with(path, lambda file: pq.write_table(table, file, compression="zstd"))


def _further(values: list[Any]) -> pa.Array:
    if all(value is None or isinstance(value, (int, float)) for value in values):
        return pa.array(values, pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def read_rollouts(path: str | Path, judged_by: Sequence[str] = ("reward", "correct")) -> pd.DataFrame:
    """Reads a rollout file (Parquet or JSON Lines) into a frame: one row per rollout, the columns that the file has.

    A NaN reward stays NaN: unscorable. Messages count rows from 1, without empty lines.

    Args:
        path: the file.
        judged_by: columns of which it needs one, to say how good a completion is.

    Raises:
        CalibrantError: no such file, not a rollout file, no rollout in it, a required column is missing, or a value
            is not what its column holds.
    """
    path = Path(path)
    frame = _frame(path)
    if not len(frame):
        raise CalibrantError(f"'{path}' holds no rollouts; give a file with one row per rollout")
    missing = [name for name in ("prompt_id", "completion") if name not in frame]
    first, *others = judged_by
    missing += [] if set(judged_by) & set(frame) else [f"{first} (or {' or '.join(others)})"]
    if missing:
        raise CalibrantError(
            f"'{path}' lacks the column {', '.join(missing)}; a rollout file needs prompt_id, "
            f"completion, and {' or '.join(judged_by)}"
        )
    return _typed(frame, path)


def group_keys(frame: pd.DataFrame, path: str | Path | None = None) -> list[str]:
    """The columns that say which rollouts are a group: `prompt_id`, and `step` where every row has one.

    Args:
        frame: as `read_rollouts` returns it.
        path: the file that it came from, for the message.

    Raises:
        CalibrantError: rollouts of one group answer different prompts.
    """
    keys = [name for name in ("step", "prompt_id") if name in frame and frame[name].notna().all()]
    if "prompt" not in frame:
        return keys
    other = (frame["prompt"] != frame.groupby(keys, sort=False)["prompt"].transform("first")) & frame["prompt"].notna()
    if other.any():
        row, of_file = int(other.to_numpy().argmax()), f"'{path}': " if path else ""
        raise CalibrantError(
            f"{of_file}rollouts with prompt_id '{frame['prompt_id'].iloc[row]}' answer different "
            f"prompts (row {row + 1}); give each prompt an id of its own"
        )
    return keys


PARQUET = b"PAR1"
"""The first bytes of every Parquet file."""

HINTS = {
    ".csv": "convert it, e.g. with pandas.read_csv(FILE).to_parquet(OUT)",
    ".json": "write one object per line, in a file whose name ends in .jsonl",
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), "unpack it"),
    **dict.fromkeys((".pkl", ".pickle", ".pt"), "it may hold code and is not opened: write the rows again as Parquet"),
}
"""What to do with a file of another format."""

RUN_FILES = ("*.parquet", "*.jsonl", "rollouts/*.parquet")
"""Where a folder, e.g. of a run, has its rollout files."""


def _frame(path: Path) -> pd.DataFrame:
    """The rows of a file, with values as they are."""
    if path.is_dir():
        some = next((file for kind in RUN_FILES for file in sorted(path.glob(kind))), path / "NAME.parquet")
        raise CalibrantError(f"'{path}' is a folder; name one rollout file, e.g. '{some}'")
    if not path.is_file():
        raise CalibrantError(f"no rollout file at '{path}'; give a .parquet or .jsonl file, one row per rollout")
    try:
        with open(path, "rb") as file:
            start = file.read(len(PARQUET))
    except OSError as error:
        raise CalibrantError(f"cannot read '{path}' ({error.strerror}); give a file that you may read") from None
    if path.suffix == ".jsonl":
        return _frame_of_lines(path)
    if start == PARQUET:
        return _frame_of_parquet(path)
    if not start:
        return pd.DataFrame()
    raise CalibrantError(
        f"'{path}' is neither Parquet nor JSON Lines (.jsonl), the formats that are read; "
        f"{HINTS.get(path.suffix, 'convert it to one of them')}"
    )


def _frame_of_lines(path: Path) -> pd.DataFrame:
    rows = list(read_json_lines(path))
    for number, row in enumerate(rows, 1):
        broken = next((name for name, value in row.items() if not _is_unicode([name, value])), None)
        if broken is not None:
            raise CalibrantError(
                f"'{path}' has half of a character (a lone surrogate) in the column {broken!a}, row {number}; "
                "correct that row"
            )
    return pd.DataFrame(rows, dtype=object)


def _is_unicode(value: Any) -> bool:
    """Whether UTF-8 can hold each text of a value."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _frame_of_parquet(path: Path) -> pd.DataFrame:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (ValueError, OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise CalibrantError(f"'{path}' is a damaged Parquet file ({reason}); write it again") from None
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not _is_valid(column):
            row = next(i for i in range(len(column)) if not _is_valid(column.slice(i, 1)))
            raise CalibrantError(f"'{path}' has no valid UTF-8 in the column '{name}', row {row + 1}; correct that row")
        if table.column_names.count(name) > 1:
            raise CalibrantError(f"'{path}' has several columns '{name}'; give each a name of its own")
    return table.to_pandas(ignore_metadata=True)


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowException:
        return False
    return True


def _typed(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The frame with each known column in its type, so that nothing is read as something else later."""
    for name in READERS.keys() & set(frame):
        frame[name] = pd.Series(_column(frame[name], name, path), index=frame.index)
    if frame["prompt_id"].isna().any():
        row = int(frame["prompt_id"].isna().to_numpy().argmax()) + 1
        raise CalibrantError(f"'{path}' has no prompt_id in row {row}; rollouts of one prompt share an id")
    return frame.assign(completion=frame["completion"].fillna("")).infer_objects()


def _column(values: Iterable[Any], name: str, path: Path) -> list[Any]:
    read, what = READERS[name]
    typed: list[Any] = []
    for row, value in enumerate(values, 1):
        absent = value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value))
        try:
            typed.append(None if absent else read(value))
        except (TypeError, ValueError, OverflowError):
            raise CalibrantError(
                f"'{path}' has {ascii(value)[:60]} in the column '{name}', row {row}, where {what} belongs; "
                "correct that row"
            ) from None
    return typed
