"""The rollout file: one row a rollout, the same from training, evaluation and the user's own tools."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.errors import CalibrantError
from calibrant.files import write_json_lines, write_with

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

FURTHER_NUMBERS = {"answer_confidence": pa.float64(), "ratio_variance": pa.float64()}
"""Columns that some methods read, and that few files have."""


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
        CalibrantError: no such file, not a rollout file, no rollout in it, a required column is missing, or a value
            is not what its column holds.
    """
    path = Path(path)
    if not path.is_file():
        raise CalibrantError(f"no rollout file at '{path}'; give a .parquet or .jsonl file, one row a rollout")
    try:
        lines = path.suffix == ".jsonl"
        frame = pd.DataFrame(list(_json_rows(path))) if lines else pq.read_table(path).to_pandas()
    except (ValueError, OSError, pa.ArrowException) as error:
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
    if not len(frame):
        raise CalibrantError(f"'{path}' holds no rollout; give a file with one row a rollout")
    return _typed(frame, path)


def group_keys(frame: pd.DataFrame) -> list[str]:
    """The columns that say which rollouts are a group: `prompt_id`, and `step` where every row has one.

    Raises:
        CalibrantError: rollouts of one group answer different prompts.
    """
    keys = [name for name in ("step", "prompt_id") if name in frame and frame[name].notna().all()]
    if "prompt" not in frame:
        return keys
    several = frame.groupby(keys, sort=False)["prompt"].transform("nunique") > 1
    if several.any():
        raise CalibrantError(
            f"the rollouts with prompt_id '{frame['prompt_id'][several].iloc[0]}' answer different prompts; "
            "give each prompt an id of its own"
        )
    return keys


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file; of a last line without an end, what a kill has cut short is left out."""
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith("\n"):
                    return
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            yield row


def _typed(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The frame with each known column in its type, so that nothing is read as something else later."""
    for name, kind in (COLUMNS | FURTHER_NUMBERS).items():
        if name in frame:
            frame[name] = pd.Series(_column(frame[name], name, kind, path), index=frame.index)
    if frame["prompt_id"].isna().any():
        row = int(frame["prompt_id"].isna().to_numpy().argmax()) + 1
        raise CalibrantError(f"'{path}' has no prompt_id in row {row}; rollouts of one prompt share an id")
    return frame.assign(completion=frame["completion"].fillna(""))


def _column(values: Iterable[Any], name: str, kind: pa.DataType, path: Path) -> list[Any]:
    read, what = (_identifier, "a text or a number") if name == "prompt_id" else READ[kind]
    found = []
    for row, value in enumerate(values, 1):
        try:
            absent = value is None or (isinstance(value, float) and math.isnan(value))
            found.append(None if absent else read(value))
        except (TypeError, ValueError, OverflowError):
            raise CalibrantError(
                f"'{path}' has {repr(value)[:60]} in the column '{name}', row {row}, where {what} belongs; "
                "correct that row"
            ) from None
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _identifier(value: Any) -> str:
    return str(value) if isinstance(value, (int, float)) else _text(value)


def _texts(value: Any) -> list[str]:
    if isinstance(value, (str, bytes, Mapping)):
        raise TypeError(value)
    return [_text(item) for item in value]


def _flag(value: Any) -> bool:
    if value not in (True, False):
        raise ValueError(value)
    return bool(value)


def _whole(bits: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if float(value) != int(value) or not -(2 ** (bits - 1)) <= int(value) < 2 ** (bits - 1):
            raise ValueError(value)
        return int(value)

    return read


READ: dict[pa.DataType, tuple[Callable[[Any], Any], str]] = {
    pa.string(): (_text, "a text"),
    pa.list_(pa.string()): (_texts, "a list of texts"),
    pa.bool_(): (_flag, "true or false"),
    pa.float64(): (float, "a number"),
    pa.int32(): (_whole(32), "a whole number"),
    pa.int64(): (_whole(64), "a whole number"),
}
"""How a value of a column is read, and what it has to be, in words."""
