"""The columns of a rollout file: their types, and which values they hold."""

import math
from collections.abc import Callable, Mapping
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
"""The columns that every rollout file has, null where nothing was computed; further columns are scores or the user's.

`logprob` and `ref_logprob` are sums over the completion's tokens in nats, `token_entropy` the mean over them.
"""

FURTHER_NUMBERS = {"answer_confidence": pa.float64(), "ratio_variance": pa.float64()}
"""Columns that some methods read, and that few files have."""


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


def _whole(low: int, end: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if float(value) != int(value) or not low <= int(value) < end:
            raise ValueError(value)
        return int(value)

    return read


def _number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        number = float(value)
        if number < low - TOLERATED or number > high + TOLERATED:
            raise ValueError(value)
        return min(max(number, low), high)

    return read


TOLERATED = 1e-3
"""How far rounding may carry a number beyond its limit, to which it is then set."""

_OF_TYPE: dict[pa.DataType, tuple[Callable[[Any], Any], str]] = {
    pa.string(): (_text, "a text"),
    pa.list_(pa.string()): (_texts, "a list of texts"),
    pa.bool_(): (_flag, "true or false"),
    pa.float64(): (float, "a number"),
    pa.int32(): (_whole(-(2**31), 2**31), "a whole number"),
    pa.int64(): (_whole(-(2**63), 2**63), "a whole number"),
}

READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    **{name: _OF_TYPE[kind] for name, kind in {**COLUMNS, **FURTHER_NUMBERS}.items()},
    "prompt_id": (_identifier, "a text or a number"),
    "num_tokens": (_whole(0, 2**31), "a whole number of at least 0"),
    **dict.fromkeys(("logprob", "ref_logprob"), (_number(-math.inf, 0), "a number of at most 0 (nats)")),
    **dict.fromkeys(("token_entropy", "ratio_variance"), (_number(0, math.inf), "a number of at least 0")),
    "answer_confidence": (_number(0, 1), "a number from 0 to 1"),
}
"""Column -> how a value is read, and what it has to be, in words."""
