"""Tasks on the user's own data: rows from a file, a folder or the hub, divided into training and test rows."""

import hashlib
import logging
import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from calibrant.errors import CalibrantError
from calibrant.tasks.base import Row, Task, check_split
from calibrant.tasks.cells import text_of
from calibrant.tasks.levels import Keep
from calibrant.tasks.own_source import GivenRow, Splits, find_splits
from calibrant.tasks.schema import Schema, WrongCell, cell, resolve_columns
from calibrant.tasks.sources import LoadReport
from calibrant.tasks.templates import Template, check_template, read_template

log = logging.getLogger(__name__)

TEST_SHARE = 0.1  # of data without a test split
EMPTY: tuple[object, ...] = (None, [])
Levelled = tuple[Row, str]  # a row and its level, "" without one


class OwnData(NamedTuple):
    """The user's data, as the options name them."""

    data: str  # file, folder or hub name
    columns: Mapping[str, str]  # role -> column
    template: str | None = None  # file of a prompt template
    test_share: float | None = None
    keep: Keep | None = None  # of the text in the column of the role `level`


def on_own_data(task: Task, own: OwnData) -> Task:
    """The task with rows of the user's data, in the splits of the data.

    Data with one split that is no test split are divided: `test_share` of the rows are for testing. Rows with equal
    contexts, or else equal questions, stay together, and their text decides their side, so that it depends neither on
    a seed nor on the order of the rows.
    """
    schema = task.schema
    if schema is None:
        raise CalibrantError(
            f"--data goes with the tasks reading, maths, choice and chat, not with '{task.name}', whose official files "
            "go with --data-dir"
        )
    splits = find_splits(own.data)
    template = read_template(own.template) if own.template else None
    read = cache(lambda split: _read(task.name, schema, own, template, split, splits))
    known = [split for split in ("validation", "test") if split in splits]
    whole = [*(["train"] if "train" in splits else []), *(s for s in splits if s not in ("train", *known)), *known]
    divided = len(whole) == 1 and whole[0] not in ("validation", "test")
    if not divided and own.test_share is not None:
        raise CalibrantError(f"'{own.data}' has the splits {', '.join(whole)}; leave out --test-share")
    parts = cache(lambda: _divide(read(whole[0]), own))

    def load(split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
        if data_dir is not None:
            raise CalibrantError("give --data (your own data) or --data-dir (official files of a benchmark), not both")
        if split == "train" and not divided and "train" not in splits:
            raise CalibrantError(
                f"'{own.data}' has no split for training, only {', '.join(whole)}; name the file differently, or give "
                "--data a folder with train and test files"
            )
        check_split(f"'{own.data}'", split, ("train", "test") if divided else whole)
        whole_split = parts()[split] if divided else read(split)
        rows = [row for row, level in whole_split if own.keep is None or own.keep(level, split)]
        if own.keep and not rows:
            raise CalibrantError(f"'{own.data}', split {split}: no row is of a level of --levels")
        random.Random(f"{task.name} {split} {seed}").shuffle(rows)
        return rows[:size]

    names = ("train", "test") if divided else tuple(dict.fromkeys(["train", *whole]))
    return replace(task, load=load, splits=names, source=None, train_task=None)


def _read(
    task: str, schema: Schema, own: OwnData, template: Template | None, split: str, splits: Splits
) -> list[Levelled]:
    """The complete rows of a split, with unique ids; those that lack something are counted in a warning."""
    given = list(splits[split]())
    names = list(dict.fromkeys(str(name) for row in given for name in row.record))
    origin = f"'{own.data}'"
    columns = resolve_columns(schema.roles, own.columns, names, origin)
    if template:
        check_template(template, [*schema.roles, *(name for name in names if name not in schema.roles)])
    if own.keep and "level" not in columns:
        raise CalibrantError(f"{origin} has no column 'level' for --levels; name yours with --columns level=COLUMN")
    kept: list[Levelled] = []
    left_out: dict[str, list[str]] = {}
    seen: Counter[str] = Counter()
    for row in given:
        values = _values(row, schema, columns)
        lacking = next(
            (role for role, about in schema.roles.items() if about.required and values.get(role) in EMPTY), None
        )
        if lacking:
            left_out.setdefault(f"without '{columns[lacking]}'", []).append(row.name)
        else:
            name = values.get("id") or row.name
            seen[name] += 1
            unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
            made: Row = {**_row(row, schema, columns, values, template), "prompt_id": unique}
            kept.append((made, values.get("level") or ""))
    report = LoadReport(task, split, origin, len(kept), left_out)
    log.log(logging.WARNING if left_out else logging.INFO, "%s", report)
    if not kept:
        raise CalibrantError(f"{report}: no row is left; check --columns")
    return kept


def _values(row: GivenRow, schema: Schema, columns: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for role, column in columns.items():
        try:
            values[role] = schema.roles[role].read(cell(row.record, column), row.textual)
        except ValueError as error:
            raise _wrong(row, column, error) from None
    return values


def _row(
    row: GivenRow, schema: Schema, columns: Mapping[str, str], values: Mapping[str, Any], template: Template | None
) -> Row:
    try:
        texts = schema.texts(values) if template else {}
        made = schema.row(values, template.fill(lambda name: _text(row, columns, texts, name)) if template else None)
    except WrongCell as error:
        raise _wrong(row, columns[error.role], error) from None
    return {**made, "columns": row.record}


def _text(row: GivenRow, columns: Mapping[str, str], texts: Mapping[str, str], name: str) -> str:
    """The text of a placeholder: of a role, or of another column."""
    column = columns.get(name, name)
    try:
        return texts[name] if name in texts else text_of(cell(row.record, column)) or ""
    except (TypeError, ValueError):
        raise _wrong(row, column, ValueError("holds no text, which the prompt template needs")) from None


def _wrong(row: GivenRow, column: str, error: ValueError) -> CalibrantError:
    return CalibrantError(f"{row.place}, column '{column}', {error}")


def _divide(rows: list[Levelled], own: OwnData) -> dict[str, list[Levelled]]:
    """Training and test rows; the groups of rows with the smallest SHA-256 of their text are for testing."""
    share = TEST_SHARE if own.test_share is None else own.test_share
    groups: dict[str, list[int]] = {}
    for i, (row, _) in enumerate(rows):
        text = " ".join((row.get("context") or row["prompt"]).lower().split())
        groups.setdefault(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest(), []).append(i)
    test: set[int] = set()
    for key in sorted(groups):
        if len(test) < math.ceil(share * len(rows)):
            test.update(groups[key])
    if len(groups) == 1 and share < 1:
        raise CalibrantError(
            f"all rows of '{own.data}' have the same text, so that they cannot be divided; add a test file"
        )
    parts = {
        "train": [row for i, row in enumerate(rows) if i not in test],
        "test": [row for i, row in enumerate(rows) if i in test],
    }
    log.warning(
        "'%s' has no test split: %d of its %d rows are for testing (--test-share %g)",
        *(own.data, len(test), len(rows), share),
    )
    return parts
