"""Reads tables of any size block by block: JSON Lines and Parquet column by column, other files row by row."""

import codecs
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from calibrant.errors import CalibrantError
from calibrant.files import json_lines
from calibrant.tasks.files import Record, decompressed, kind_of, records

BLOCK = 4 * 2**20  # bytes of JSON Lines that are read at a time
BLANK = re.compile(rb"(?:\A|\n)[^\S\n]*\n")  # an empty line
ROWS = 8192  # rows of other files

Column: TypeAlias = "pa.Array | pa.ChunkedArray | list[Any]"


class RowBlock(NamedTuple):
    """Consecutive rows of a file."""

    columns: Mapping[str, Column]
    size: int  # number of rows
    first: int  # number of the first row in its file, from 1
    textual: bool = False  # whether the file knows texts alone (CSV)


def blocks_of(path: Path) -> Iterator[RowBlock]:
    """The rows of a Parquet, JSON Lines, JSON or CSV file, `.gz` or `.zst` too; CalibrantError where it is damaged."""
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _numbered(_arrays(table) for table in parquet_tables(path))
    elif kind == ".jsonl":
        yield from _of_lines(path)
    else:
        yield from blocks_of_rows(records(path), f"'{path}'", textual=kind == ".csv")


def blocks_of_rows(rows: Iterable[Record], origin: str, textual: bool = False) -> Iterator[RowBlock]:
    """Rows as blocks; where a file knows texts alone, an empty one is no value."""
    rows, first = iter(rows), 1
    while chunk := list(islice(rows, ROWS)):
        if textual:
            chunk = [{name: value or None for name, value in row.items()} for row in chunk]
        yield RowBlock(_by_column(chunk, origin, first), len(chunk), first, textual)
        first += len(chunk)


def parquet_tables(path: Path, rows: int | None = ROWS) -> Iterator[pa.Table]:
    """The tables of a Parquet file, of `rows` each, or one of all rows where None; an empty file has one of no rows."""
    try:
        with pq.ParquetFile(path) as file:
            tables: Iterable[pa.Table] = [file.read()]
            if rows is not None:
                tables = (pa.Table.from_batches([batch]) for batch in file.iter_batches(batch_size=rows))
            first = 1
            for table in tables:
                _check_columns(table, path, first)
                first += len(table)
                yield table
    except CalibrantError:
        raise
    except (ValueError, OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise CalibrantError(f"'{path}' is a damaged Parquet file ({reason}); write it again") from None


def check_characters(rows: Iterable[Mapping[str, object]], origin: str, first: int = 1) -> None:
    """Raises CalibrantError, with row and column, for text that cannot be written as UTF-8."""
    for number, row in enumerate(rows, first):
        for name, value in row.items():
            try:
                json.dumps([name, value], ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                raise CalibrantError(
                    f"{origin} has half of a character (a lone surrogate) in the column {name!a}, row {number}; "
                    "correct that row"
                ) from None


def _check_columns(table: pa.Table, path: Path, first: int) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not _is_valid(column):
            row = next(i for i in range(len(column)) if not _is_valid(column.slice(i, 1)))
            raise CalibrantError(
                f"'{path}' has no valid UTF-8 in the column '{name}', row {row + first}; correct that row"
            )
        if table.column_names.count(name) > 1:
            raise CalibrantError(f"'{path}' has several columns '{name}'; give each a name of its own")


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowException:
        return False
    return True


def _arrays(table: pa.Table) -> dict[str, pa.Array]:
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    decoded = {name: x.dictionary_decode() for name, x in columns.items() if pa.types.is_dictionary(x.type)}
    return columns | decoded


def _numbered(tables: Iterable[dict[str, pa.Array]]) -> Iterator[RowBlock]:
    first = 1
    for columns in tables:
        size = len(next(iter(columns.values()), ()))
        yield RowBlock(columns, size, first)
        first += size


def _of_lines(path: Path) -> Iterator[RowBlock]:
    """Blocks of whole lines, parsed by Arrow, and by Python where types are mixed or something is wrong."""
    first = line = 1
    try:
        with decompressed(path) as file:
            for content in _whole_lines(file):
                count = content.count(b"\n") + (not content.endswith(b"\n"))
                table = _parsed(content, count)
                if table is not None:
                    block = RowBlock(_arrays(table), len(table), first)
                else:
                    rows = list(json_lines(io.BytesIO(content), path, line))
                    block = RowBlock(_by_column(rows, f"'{path}'", first), len(rows), first)
                if block.size:
                    yield block
                first, line = first + block.size, line + count
    except (OSError, EOFError, pa.ArrowException) as error:
        raise CalibrantError(f"cannot read '{path}' ({' '.join(str(error).split())}); fetch it again") from None


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Blocks of whole lines of about `BLOCK` bytes, without the byte order mark."""
    rest = file.read(BLOCK).removeprefix(codecs.BOM_UTF8)
    while more := file.read(BLOCK):
        end = rest.rfind(b"\n") + 1
        if end:
            yield rest[:end]
        rest = rest[end:] + more
    if rest:
        yield rest


def _parsed(content: bytes, count: int) -> pa.Table | None:
    """The objects of JSON Lines as Arrow reads them; None unless these are exactly `count`, with one type per column.

    Arrow makes timestamps of texts like dates: such columns are read again, as texts.
    """
    if BLANK.search(content):  # two objects on a line beside an empty one would not show in the count
        return None
    texts: list[pa.Field] = []
    for _ in range(2):
        read = pa.json.ReadOptions(use_threads=False, block_size=len(content) + 1)
        parse = pa.json.ParseOptions(explicit_schema=pa.schema(texts) if texts else None)
        try:
            table = pa.json.read_json(pa.BufferReader(content), read_options=read, parse_options=parse)
        except (pa.ArrowException, UnicodeError):
            return None
        if len(table) != count:
            return None
        texts = [pa.field(field.name, pa.string()) for field in table.schema if pa.types.is_timestamp(field.type)]
        if not texts:
            break
    columns = zip(table.schema, table.columns, strict=True)
    return table if all(_is_plain(field.type) and _is_valid(x) and _is_exact(x) for field, x in columns) else None


def _is_exact(column: pa.ChunkedArray) -> bool:
    """Whether no whole number was rounded; Arrow reads whole numbers beside fractions as floats."""
    if not pa.types.is_floating(column.type):
        return True
    largest = pc.max(pc.abs(column)).as_py()
    return largest is None or not 2**53 <= largest < math.inf


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a type holds no timestamp, in nested ones either."""
    return not pa.types.is_timestamp(kind) and all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))


def _by_column(rows: list[Record], origin: str, first: int) -> dict[str, list[Any]]:
    check_characters(rows, origin, first)
    names = dict.fromkeys(name for row in rows for name in row)
    return {str(name): [row.get(name) for row in rows] for name in names}
