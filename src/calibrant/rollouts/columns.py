"""The columns of a rollout file: their types, and the values that they hold."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

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

READERS: dict[str, tuple[Reader, str]] = {
    **{name: _OF_TYPE[kind] for name, kind in {**COLUMNS, **FURTHER_NUMBERS}.items()},
    "prompt_id": (lambda x: str(x) if isinstance(x, (int, float)) else _text(x), "a text or a number"),
    "num_tokens": (partial(_whole, bits=32, low=0), "a whole number of at least 0"),
    **dict.fromkeys(("logprob", "ref_logprob"), (partial(_number, high=0), "a number of at most 0 (nats)")),
    **dict.fromkeys(("token_entropy", "ratio_variance"), (partial(_number, low=0), "a number of at least 0")),
    "answer_confidence": (partial(_number, low=0, high=1), "a number from 0 to 1"),
}
"""Column -> how a value is read, and what it has to be, in words."""
