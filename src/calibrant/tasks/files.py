"""Reads records from JSON, JSON Lines, CSV and Parquet files. Nothing in a file is executed or unpickled."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.errors import CalibrantError

Record = dict[str, Any]
COMPRESSED = (".gz", ".zst")
LONGEST_CELL = 2**31 - 1  # characters of a cell of a CSV file; Python's default is 131,072


def records(path: Path, columns: Sequence[str] = ()) -> Iterator[Record]:
    """The records of a file, in the format of its suffix; `.gz` and `.zst` are decompressed.

    The suffix is `.json` (a list, an object of objects by their id, or one object), `.jsonl`, `.csv` or `.parquet`, of
    which `columns` are read, nested ones with dots; all when empty.
    """
    kind = kind_of(path)
    if kind not in KINDS:
        raise CalibrantError(f"'{path}' is no data file; give {', '.join(KINDS)}, or .gz or .zst of them")
    try:
        if kind == ".parquet":
            yield from _parquet(path, columns)
        else:
            with _opened(path) as file:
                yield from READERS[kind](file)
    except (OSError, EOFError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CalibrantError(f"cannot read '{path}' ({reason}); fetch it again") from None


def kind_of(path: Path) -> str:
    """The suffix of a file without that of its compression.

    >>> kind_of(Path("a.jsonl.zst")), kind_of(Path("b.csv"))
    ('.jsonl', '.csv')
    """
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


def record_list(value: list[Record] | dict[str, list[object]]) -> list[Record]:
    """A list of records, given as such or as columns of equal length, as data sets of the hub store it.

    >>> record_list({"title": ["A", "B"], "sentences": [["a."], ["b."]]})
    [{'title': 'A', 'sentences': ['a.']}, {'title': 'B', 'sentences': ['b.']}]
    """
    if not isinstance(value, dict):
        return list(value)
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def nested(record: Record) -> Record:
    """Names with dots as nested records.

    >>> nested({"document.id": "d", "document.summary.text": "Once."})
    {'document': {'id': 'd', 'summary': {'text': 'Once.'}}}
    """
    result: Record = {}
    for name, value in record.items():
        *path, last = name.split(".")
        inner = result
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return result


def decompressed(path: Path) -> BinaryIO:
    """A file as bytes; `.gz` and `.zst` are decompressed."""
    if path.suffix == ".zst":
        return pa.input_stream(str(path), compression="zstd")
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")


def _opened(path: Path) -> io.TextIOBase:
    return io.TextIOWrapper(decompressed(path), encoding="utf-8-sig", newline="")


def _json(file: io.TextIOBase) -> Iterator[Record]:
    data = json.load(file)
    if isinstance(data, dict) and data and all(isinstance(value, dict) for value in data.values()):
        data = [{"id": key, **value} for key, value in data.items()]
    for record in data if isinstance(data, list) else [data]:
        yield _checked(record, "a JSON object")


def _json_lines(file: io.TextIOBase) -> Iterator[Record]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            yield _checked(record, f"line {number}")


def _checked(record: object, where: str) -> Record:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a {type(record).__name__} instead of an object")
    return record


def _csv(file: io.TextIOBase) -> Iterator[Record]:
    csv.field_size_limit(LONGEST_CELL)
    for number, record in enumerate(csv.DictReader(file, strict=True), 1):
        if None in record or None in record.values():
            raise ValueError(f"row {number} has another number of cells than the header")
        yield record


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=64, columns=list(columns) or None):
            yield from batch.to_pylist()


READERS: dict[str, Callable[[io.TextIOBase], Iterator[Record]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _csv,
}

KINDS = (*READERS, ".parquet")
