"""The rollout file: one row per rollout, the same from training, evaluation and other tools."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.errors import CalibrantError
from calibrant.files import read_json_lines, write_json_lines, write_with
from calibrant.rollouts.columns import COLUMNS, READERS, read_values
from calibrant.rollouts.tables import check_characters, parquet_tables

PARQUET = b"PAR1"  # the first bytes of every Parquet file
HINTS = {
    ".csv": "convert it, e.g. with pandas.read_csv(FILE).to_parquet(OUT)",
    ".json": "write one object per line, in a file whose name ends in .jsonl",
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), "unpack it"),
    **dict.fromkeys((".pkl", ".pickle", ".pt"), "it may hold code and is not opened: write the rows again as Parquet"),
}
"""What to do with a file of another format."""

RUN_FILES = ("*.parquet", "*.jsonl", "rollouts/*.parquet")  # the rollout files of a folder, e.g. of a run


def write_rollouts(path: str | Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Writes one row per rollout as Parquet, or as JSON Lines if the name ends in `.jsonl`, completely or not at all.

    Rows have `prompt_id`, `completion`, and `reward` or `correct`. A key that is not in `COLUMNS` becomes a column of
    floats if its values are numbers, of texts otherwise.
    """
    rows = [dict(row) for row in rows]
    if str(path).endswith(".jsonl"):
        return write_json_lines(path, rows)
    further = sorted({key for row in rows for key in row} - set(COLUMNS))
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in COLUMNS.items()}
    return write_table(path, pa.table(columns | {name: _further([row.get(name) for row in rows]) for name in further}))


def write_table(path: str | Path, table: pa.Table) -> Path:
    """Writes a table of rollouts as Parquet, with all of `COLUMNS`, completely or not at all."""
    lacking = {name: pa.nulls(len(table), kind) for name, kind in COLUMNS.items() if name not in table.column_names}
    columns = {name: lacking[name] if name in lacking else table[name] for name in COLUMNS}
    columns |= {name: table[name] for name in table.column_names if name not in COLUMNS}
    return write_with(path, lambda file: pq.write_table(pa.table(columns), file, compression="zstd"))


def _further(values: list[object]) -> pa.Array:
    if all(value is None or isinstance(value, (int, float)) for value in values):
        return pa.array(values, pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def read_rollouts(path: str | Path, judged_by: Sequence[str] = ("reward", "correct")) -> pd.DataFrame:
    """Reads a rollout file (Parquet or JSON Lines) into a frame: one row per rollout, the columns that the file has.

    A NaN reward stays NaN: unscorable. Error messages count rows from 1, without empty lines. The file needs one of
    the columns `judged_by`, which say how good a completion is.

    Raises:
        CalibrantError: no file, another format, no rollouts, a missing column, or a value not of its column's type.
    """
    path = Path(path)
    frame = _frame(path)
    if not len(frame):
        raise CalibrantError(f"'{path}' holds no rollouts; give a file with one row per rollout")
    missing = [name for name in ("prompt_id", "completion") if name not in frame]
    if not set(judged_by) & set(frame):
        missing.append(f"{judged_by[0]} (or {' or '.join(judged_by[1:])})")
    if missing:
        raise CalibrantError(
            f"'{path}' lacks the column {', '.join(missing)}; a rollout file needs prompt_id, completion, and "
            f"{' or '.join(judged_by)}"
        )
    return _typed(frame, path)


def group_keys(frame: pd.DataFrame, path: str | Path | None = None) -> list[str]:
    """The columns that identify a group: `prompt_id`, and `step` if every row has one.

    Raises:
        CalibrantError: rollouts of one group answer different prompts; it names `path`, the file of the frame.
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


def _frame(path: Path) -> pd.DataFrame:
    """The rows of a file, with values as they are."""
    if path.is_dir():
        example = next((file for kind in RUN_FILES for file in sorted(path.glob(kind))), path / "NAME.parquet")
        raise CalibrantError(f"'{path}' is a folder; name one rollout file, e.g. '{example}'")
    if not path.is_file():
        raise CalibrantError(f"no rollout file at '{path}'; give a .parquet or .jsonl file, one row per rollout")
    try:
        with open(path, "rb") as file:
            start = file.read(len(PARQUET))
    except OSError as error:
        raise CalibrantError(f"cannot read '{path}' ({error.strerror}); give a readable file") from None
    if path.suffix == ".jsonl":
        return _frame_of_lines(path)
    if start == PARQUET:
        return pa.concat_tables(parquet_tables(path, None)).to_pandas(ignore_metadata=True)
    if not start:
        return pd.DataFrame()
    hint = HINTS.get(path.suffix, "convert it to one of them")
    raise CalibrantError(f"'{path}' is neither Parquet nor JSON Lines (.jsonl), the formats that are read; {hint}")


def _frame_of_lines(path: Path) -> pd.DataFrame:
    rows = list(read_json_lines(path))
    check_characters(rows, f"'{path}'")
    return pd.DataFrame(rows, dtype=object)


def _typed(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The frame with the columns of `READERS` in their types."""
    for name in READERS.keys() & set(frame):
        frame[name] = pd.Series(read_values(frame[name], name, f"'{path}'"), index=frame.index)
    if frame["prompt_id"].isna().any():
        row = int(frame["prompt_id"].isna().to_numpy().argmax()) + 1
        raise CalibrantError(f"'{path}' has no prompt_id in row {row}; rollouts of one prompt share an id")
    return frame.assign(completion=frame["completion"].fillna("")).infer_objects()
