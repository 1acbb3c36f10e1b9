"""The rollout file: one row a rollout, the same from training, evaluation and the user's own tools."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.errors import CalibrantError
from calibrant.files import read_json_lines, write_json_lines, write_with

COLUMNS: dict[str, pa.DataType] = {
    "prompt_id": pa.string(),
    "rollout": pa.int32(),
    "step": pa.int64(),
    "prompt": pa.string(),
    "completion": pa.string(),
    "answer": pa.string(),
    "references": pa.list_(pa.string()),
    "reward": pa.float64(),
    "correct": pa.bool_(),
    "logprob": pa.float64(),
    "num_tokens": pa.int32(),
    "ref_logprob": pa.float64(),
    "token_entropy": pa.float64(),
    "cluster": pa.int64(),
    "advantage_base": pa.float64(),
    "weight": pa.float64(),
    "advantage": pa.float64(),
}
"""The columns that every rollout file has, null where nothing was computed; further columns are scores or the user's.

`logprob` and `ref_logprob` are sums over the completion's tokens in nats, `token_entropy` the mean over them.
"""


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
    """Reads a rollout file (Parquet or JSON Lines) into a frame, one row a rollout.

    A NaN reward stays NaN: unscorable.

    Args:
        path: the file.
        judged_by: columns of which it needs one, to say how good a completion is.

    Returns:
        The columns that the file has, in its order.

    Raises:
        CalibrantError: no such file, not a rollout file, or a required column is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise CalibrantError(f"no rollout file at '{path}'; give a .parquet or .jsonl file, one row a rollout")
    try:
        lines = path.suffix == ".jsonl"
        frame = pd.DataFrame(list(read_json_lines(path))) if lines else pq.read_table(path).to_pandas()
    except (ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise CalibrantError(f"'{path}' is not a rollout file ({reason}); write Parquet or JSON Lines") from None
    missing = [name for name in ("prompt_id", "completion") if name not in frame]
    first, *others = judged_by
    missing += [] if set(judged_by) & set(frame) else [f"{first} (or {' or '.join(others)})"]
    if missing:
        raise CalibrantError(
            f"'{path}' lacks the column {', '.join(missing)}; a rollout file needs prompt_id, "
            f"completion, and {' or '.join(judged_by)}"
        )
    return frame
