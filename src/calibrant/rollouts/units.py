"""Divides rollouts of any number into units of whole groups, each small enough for memory.

A group is the rollouts of one `prompt_id` and, where there are steps, one `step`; null is a step of its own. Tables
have the columns `FILE` and `ROW`, the numbers of a rollout's source and row.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from calibrant.errors import CalibrantError
from calibrant.files import flush

FILE, ROW = "__file", "__row"
PARTITION = 64 * 2**20  # bytes of the rows of a partition, about
BUFFER = 64 * 2**20  # bytes of rows that wait to be written into partitions

NO_STEP = -(2**63)


class GroupsLieApart(Exception):
    """The rollouts of a group are in two units; the message is its prompt_id."""


def in_order(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Units of about `rows` rollouts, whole groups each, of rollouts whose groups are consecutive, in their order.

    Of a unit, the groups times the size of the largest are at most `rows`, unless it is one group. Rollouts that are no
    more than `rows` are one unit, whatever their order. Raises `GroupsLieApart`.
    """
    seen: set[int] = set()
    waiting: list[pa.Table] = []
    count, first = 0, True
    for table in tables:
        waiting.append(table)
        count += len(table)
        if count > rows:
            *units, rest = _units(joined(waiting), rows)
            for unit in units:
                yield _fresh(unit, seen)
            waiting, count, first = [rest], len(rest), first and not units
    if count:
        for unit in [joined(waiting)] if first and count <= rows else _units(joined(waiting), rows):
            yield _fresh(unit, seen)


def _units(table: pa.Table, rows: int) -> list[pa.Table]:
    """The units of a table, of which the last may not be complete."""
    starts = np.flatnonzero(_starts(table))
    cuts, largest, groups = [0], 0, 0
    for start, end in zip(starts, [*starts[1:], len(table)], strict=True):
        largest, groups = max(largest, end - start), groups + 1
        if groups > 1 and groups * largest > rows:
            cuts.append(int(start))
            largest, groups = end - start, 1
    return [table.slice(a, b - a) for a, b in zip(cuts, [*cuts[1:], len(table)], strict=True)]


def _keys(table: pa.Table) -> list[pa.ChunkedArray]:
    keys = [table["prompt_id"]]
    return [*keys, table["step"].fill_null(NO_STEP)] if "step" in table.column_names else keys


def _starts(table: pa.Table) -> np.ndarray:
    """Whether a row is of another group than the one before, `[rows]`."""
    other = np.zeros(len(table), dtype=bool)
    other[:1] = True
    for key in _keys(table):
        other[1:] |= pc.not_equal(key.slice(1), key.slice(0, len(table) - 1)).to_numpy()
    return other


def _fresh(unit: pa.Table, seen: set[int]) -> pa.Table:
    """A unit, if none of its groups was in an earlier one."""
    starts = pa.array(np.flatnonzero(_starts(unit)))
    columns = [key.take(starts).to_pylist() for key in _keys(unit)]
    groups = dict.fromkeys(zip(*columns, strict=True))
    for group in groups:
        if hash(group) in seen:
            raise GroupsLieApart(group[0])
    seen.update(map(hash, groups))
    return unit


def joined(tables: list[pa.Table]) -> pa.Table:
    """Tables as one; a column that a table lacks is null there, and one of numbers and texts becomes text."""
    if len(tables) == 1:
        return tables[0]
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, of_name in kinds.items() if len(of_name) > 1}
    return pa.concat_tables([_texts_in(table, mixed) for table in tables], promote_options="default").combine_chunks()


def _texts_in(table: pa.Table, names: set[str]) -> pa.Table:
    for name in names & set(table.column_names):
        values = pa.array([None if x is None else str(x) for x in table[name].to_pylist()], pa.string())
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def partitioned(tables: Callable[[], Iterable[pa.Table]], folder: Path, size: int) -> Iterator[pa.Table]:
    """Tables of rollouts in which the groups are consecutive, in an order that the ids alone decide.

    The rows are first written into files below `folder`, by a hash of their `prompt_id`; `size` is that of the data in
    bytes. A folder that is complete, as a killed process may leave it, is read at once.
    """
    parts, done = min(max(size // PARTITION, 1) + 1, 512), folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _partition(tables(), folder, parts)
        flush(folder)
        done.touch()
    for number in range(parts):
        files = sorted((folder / f"{number:04d}").glob("*.parquet"))
        if files:
            yield _by_group(joined([pq.read_table(file, memory_map=False) for file in files]))


def _partition(tables: Iterable[pa.Table], folder: Path, parts: int) -> None:
    for number in range(parts):
        (folder / f"{number:04d}").mkdir(parents=True)
    waiting: list[pa.Table] = []
    flushes = 0
    for table in tables:
        waiting.append(table)
        if sum(table.nbytes for table in waiting) > BUFFER:
            _write(joined(waiting), folder, parts, flushes)
            waiting, flushes = [], flushes + 1
    if waiting:
        _write(joined(waiting), folder, parts, flushes)


def _write(table: pa.Table, folder: Path, parts: int, flushes: int) -> None:
    hashes = pd.util.hash_array(table["prompt_id"].to_numpy(zero_copy_only=False).astype(object), categorize=False)
    owner = hashes % np.uint64(parts)
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(parts + 1))
    for number in range(parts):
        rows = order[bounds[number] : bounds[number + 1]]
        if len(rows):
            file = folder / f"{number:04d}" / f"{flushes:06d}.parquet"
            pq.write_table(table.take(pa.array(rows)), file, compression="lz4")


def _by_group(table: pa.Table) -> pa.Table:
    """The rows of each group together, groups and rows in the order in which they came."""
    codes = np.zeros(len(table), dtype=np.int64)
    for key in _keys(table):
        found = key.combine_chunks().dictionary_encode().indices.to_numpy()
        codes = pd.factorize(codes * (int(found.max()) + 1) + found)[0]
    return table.take(pa.array(np.argsort(codes, kind="stable")))


def check_prompts(unit: pa.Table, origins: Sequence[str]) -> None:
    """Raises CalibrantError if rollouts of one group answer different prompts; `origins` names the sources."""
    if "prompt" not in unit.column_names:
        return
    names = group_columns(unit)
    frame = unit.select([*names, "prompt"]).to_pandas()
    usual = frame.groupby(names, sort=False, dropna=False)["prompt"].transform("first")
    other = (frame["prompt"] != usual) & frame["prompt"].notna()
    if other.any():
        row = int(other.to_numpy().argmax())
        raise CalibrantError(
            f"{origins[unit[FILE][row].as_py()]}: rollouts with prompt_id '{frame['prompt_id'].iloc[row]}' answer "
            f"different prompts (row {unit[ROW][row].as_py()}); give each prompt an id of its own"
        )


def group_columns(table: pa.Table) -> list[str]:
    """The columns that identify a group."""
    return [name for name in ("step", "prompt_id") if name in table.column_names]
