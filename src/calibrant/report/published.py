"""Numbers of published tables, for `compare --beside`: a reference of shape, never a comparison."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from calibrant.errors import CalibrantError, nearest
from calibrant.files import JsonObject, read_yaml
from calibrant.report.comparison_files import main_tables, metric_label
from calibrant.report.comparison_table import aligned, cells_of, wrapped
from calibrant.report.formats import DASH
from calibrant.statistics.comparison_table import ComparisonTable

FILE = Path(__file__).with_name("published.yaml")
COLUMNS = 3  # of numbers, side by side in a terminal
WARNING = "A reference of shape, not a comparison: another model, other data and another amount of training than here."


class Number(NamedTuple):
    """A mean as printed, in per cent, and its standard deviation over runs, if there is one."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.deviation is None else f"{self.mean:.2f} ± {self.deviation:.2f}"


class Here(NamedTuple):
    """What was measured here: a title, and a text per method."""

    title: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table: calibrant's method, "" where it has none, and None where no number is printed."""

    method: str
    label: str
    numbers: tuple[Number | None, ...]


@dataclass(frozen=True)
class Published:
    """A published table, as printed."""

    name: str
    source: str
    model: str
    data: str
    runs: str
    baseline: str | None  # method of the row that gains are over
    columns: Mapping[str, str]  # name -> what it means
    rows: tuple[PublishedRow, ...]

    def gain(self, row: PublishedRow, column: int) -> float | None:
        """The gain over the baseline in per cent of it, as papers print it; None without both numbers."""
        base = next((x.numbers[column] for x in self.rows if x.method == self.baseline), None)
        number = row.numbers[column]
        return None if base is None or number is None else 100 * (number.mean / base.mean - 1)

    def about(self) -> list[str]:
        """Sentences: what the table is, what it must not be read as, and what its columns mean."""
        meanings = "; ".join(f"{column}: {meaning}" for column, meaning in self.columns.items())
        return [
            f"{self.source}. Model: {self.model}. Data: {self.data}. In per cent; {self.runs}.",
            WARNING,
            f"Columns: {meanings}.",
        ]

    def rows_of_text(self, here: "Here") -> Iterator[list[str]]:
        """Header and rows: label, calibrant's method, what was measured here, and the numbers with their gains.

        Without a method that was also measured here, that column is left out.
        """
        shared = any(row.method in here.values for row in self.rows)
        yield ["row", "method", *([here.title] if shared else []), *self.columns]
        for row in self.rows:
            texts = [self._text(row, column) for column in range(len(self.columns))]
            mine = [here.values.get(row.method, DASH)] if shared else []
            yield [row.label, row.method or DASH, *mine, *texts]

    def _text(self, row: PublishedRow, column: int) -> str:
        number, gain = row.numbers[column], self.gain(row, column)
        if number is None:
            return DASH
        return str(number) if gain is None or row.method == self.baseline else f"{number} ({gain:+.1f}%)"


def gains_here(table: ComparisonTable) -> Here:
    """The first metric of a comparison, by cell: mean and deviation over seeds, and the gain in per cent."""
    main = main_tables(table)
    if not main:
        return Here("", {})
    values = {row.cell: cells_of(row)[2] for row in main[0].rows}
    percent = {row.cell: row.gain.percent for row in main[0].rows if row.gain and row.gain.percent is not None}
    texts = {cell: f"{text} ({percent[cell]:+.1f}%)" if cell in percent else text for cell, text in values.items()}
    return Here(f"here: {main[0].task}, {metric_label(main[0].metric)}", texts)


def as_lines(table: Published, here: Here) -> list[str]:
    """The table for a terminal, a few columns at a time, under the sentences of `about`."""
    rows = list(table.rows_of_text(here))
    fixed = len(rows[0]) - len(table.columns)
    starts = range(fixed, len(rows[0]), COLUMNS)
    blocks = [aligned([row[:fixed] + row[start : start + COLUMNS] for row in rows]) for start in starts]
    return [*map(wrapped, table.about()), *(line for block in blocks for line in ["", *block])]


def published(name: str) -> Published:
    """A published table by its name, e.g. `gcpo:table1`; raises CalibrantError for an unknown one."""
    tables = _tables()
    if name not in tables:
        known = ", ".join(tables)
        raise CalibrantError(f"there is no published table '{name}'{nearest(name, tables)}; there are {known}")
    table = tables[name]
    return Published(
        name=name,
        rows=tuple(
            PublishedRow(method, label, tuple(map(_number, texts))) for method, (label, *texts) in table["rows"].items()
        ),
        baseline=table.get("baseline"),
        columns=table["columns"],
        **{key: table[key] for key in ("source", "model", "data", "runs")},
    )


def published_names() -> list[str]:
    """The names of all published tables."""
    return list(_tables())


@functools.cache
def _tables() -> JsonObject:
    return read_yaml(FILE)


def _number(text: object) -> Number | None:
    if text == "n/a":
        return None
    mean, _, deviation = str(text).partition("±")
    return Number(float(mean), float(deviation) if deviation else None)
