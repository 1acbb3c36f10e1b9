"""The columns of a rollout file: their types, and the values that they hold."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from calibrant.errors import CalibrantError

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
"""The columns of every rollout file, null where nothing was computed; further columns are scores or the user's.

`logprob` and `ref_logprob` are sums over the completion's tokens in nats, `token_entropy` is the mean over them.
"""

FURTHER_NUMBERS = {"answer_confidence": pa.float64(), "ratio_variance": pa.float64()}
"""Columns that some methods read, and that few files have."""

TOLERANCE = 1e-3  # how far rounding may move a number beyond its limit; it is then set to the limit
Reader = Callable[[Any], object]  # value -> value of the column's type; raises TypeError, ValueError or OverflowError


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _texts(value: Iterable[object]) -> list[str]:
    if isinstance(value, (str, bytes, Mapping)):
        raise TypeError(value)
    return [_text(item) for item in value]


def _flag(value: object) -> bool:
    if value not in (True, False):
        raise ValueError(value)
    return bool(value)


def _whole(value: float, bits: int, low: float = -math.inf) -> int:
    limit = 2 ** (bits - 1)
    if float(value) != int(value) or not max(low, -limit) <= int(value) < limit:
        raise ValueError(value)
    return int(value)


def _number(value: float, low: float = -math.inf, high: float = math.inf) -> float:
    number = float(value)
    if number < low - TOLERANCE or number > high + TOLERANCE:
        raise ValueError(value)
    return min(max(number, low), high)


_OF_TYPE: dict[pa.DataType, tuple[Reader, str]] = {
    pa.string(): (_text, "a text"),
    pa.list_(pa.string()): (_texts, "a list of texts"),
    pa.bool_(): (_flag, "true or false"),
    pa.float64(): (float, "a number"),
    pa.int32(): (partial(_whole, bits=32), "a whole number"),
    pa.int64(): (partial(_whole, bits=64), "a whole number"),
}

LIMITS: dict[str, tuple[float, float]] = {
    "num_tokens": (0, math.inf),
    **dict.fromkeys(("logprob", "ref_logprob"), (-math.inf, 0)),
    **dict.fromkeys(("token_entropy", "ratio_variance"), (0, math.inf)),
    "answer_confidence": (0, 1),
}
"""Column -> its lowest and highest number."""

TYPES = {**COLUMNS, **FURTHER_NUMBERS}
"""Column -> its type, of all columns that are read."""

READERS: dict[str, tuple[Reader, str]] = {
    **{name: _OF_TYPE[kind] for name, kind in TYPES.items()},
    "prompt_id": (lambda x: str(x) if isinstance(x, (int, float)) else _text(x), "a text or a number"),
    "num_tokens": (partial(_whole, bits=32, low=0), "a whole number of at least 0"),
    **dict.fromkeys(("logprob", "ref_logprob"), (partial(_number, high=0), "a number of at most 0 (nats)")),
    **dict.fromkeys(("token_entropy", "ratio_variance"), (partial(_number, low=0), "a number of at least 0")),
    "answer_confidence": (partial(_number, low=0, high=1), "a number from 0 to 1"),
}
"""Column -> how a value is read, and what it has to be, in words."""


def read_values(values: Iterable[object], name: str, origin: str, first: int = 1) -> list[object]:
    """The values of a column in its type, None where there is none; `first` is the number of the first row.

    Raises CalibrantError with `origin`, row and column for a value that is not of the type.
    """
    read, kind = READERS[name]
    typed: list[object] = []
    for row, value in enumerate(values, first):
        absent = value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value))
        try:
            typed.append(None if absent else read(value))
        except (TypeError, ValueError, OverflowError):
            raise CalibrantError(
                f"{origin} has {ascii(value)[:60]} in the column '{name}', row {row}, where {kind} belongs; "
                "correct that row"
            ) from None
    return typed


def read_column(values: pa.Array | list[object], name: str, origin: str, first: int = 1) -> pa.Array:
    """A column as an array of its type: whole arrays where that gives what `read_values` gives, else value by value."""
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        array = _whole_array(values, TYPES[name], name)
        if array is not None:
            return array
        values = values.to_pylist()
    return pa.array(read_values(values, name, origin, first), TYPES[name])


def _whole_array(values: pa.Array, kind: pa.DataType, name: str) -> pa.Array | None:
    """An array in the type of its column; None if values have to be looked at one by one."""
    given = values.type
    if pa.types.is_null(given) or given == kind == pa.string() or given == kind == pa.bool_():
        return values.cast(kind)
    if kind == pa.string():
        as_text = pa.types.is_large_string(given) or (name == "prompt_id" and pa.types.is_integer(given))
        return values.cast(kind) if as_text else None
    if kind == pa.list_(pa.string()):
        listed = pa.types.is_list(given) and given.value_type in (pa.string(), pa.large_string())
        return values.cast(kind) if listed and not values.flatten().null_count else None
    if kind == pa.bool_() or (
        not pa.types.is_integer(given) and (kind != pa.float64() or not pa.types.is_floating(given))
    ):
        return None
    try:
        return _limited(values.cast(kind, safe=kind != pa.float64()), name)
    except pa.ArrowInvalid:  # a whole number that is too large
        return None


def _limited(numbers: pa.Array, name: str) -> pa.Array | None:
    """Numbers without NaN and within the limits of their column; None where one is farther off than rounding."""
    if pa.types.is_floating(numbers.type):
        numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
    if name not in LIMITS or numbers.null_count == len(numbers):
        return numbers
    (low, high), bounds = LIMITS[name], pc.min_max(numbers).as_py()
    slack = TOLERANCE if pa.types.is_floating(numbers.type) else 0
    if bounds["min"] < low - slack or bounds["max"] > high + slack:
        return None
    if low <= bounds["min"] and bounds["max"] <= high:
        return numbers
    return pc.max_element_wise(pc.min_element_wise(numbers, high, skip_nulls=False), low, skip_nulls=False)
