"""The tables of a comparison's page."""

from collections.abc import Sequence

from calibrant.report.comparison_table import HEADERS, cells_of, probability
from calibrant.report.comparison_words import number, verdict
from calibrant.report.formats import DASH, p_value
from calibrant.report.page import Table
from calibrant.statistics.comparison_table import ComparisonRow, MetricTable

SPREAD = ("cell", "deviation over seeds", "ratio to the baseline's", "p of equal deviations", "power at twice")


def gain_table(table: MetricTable) -> Table:
    """One row per cell: mean, gain over the cell that it is compared with, and how certain that is."""
    return Table(HEADERS, [cells_of(row) for row in table.rows])


def words_table(table: MetricTable) -> Table:
    """One row per cell with a gain: its verdict."""
    return Table(["cell", "in words"], [[row.cell, verdict(row, table)] for row in table.rows if row.gain], 2)


def spread_table(table: MetricTable) -> Table:
    """One row per cell: the deviation over seeds, and whether it differs from the baseline's."""
    return Table(SPREAD, [_spread(row) for row in table.rows])


def _spread(row: ComparisonRow) -> list[str]:
    test = row.stability
    deviation = DASH if row.deviation is None else number(row.deviation)
    if test is None:
        return [row.cell, deviation, DASH, DASH, DASH]
    return [
        row.cell,
        deviation,
        DASH if test.ratio is None else f"{test.ratio:.2f}",
        DASH if test.p is None else p_value(test.p),
        DASH if test.power is None else probability(test.power),
    ]


def mean_table(columns: Sequence[tuple[str, MetricTable]]) -> Table:
    """One row per cell, one column per metric: mean ± deviation over seeds."""
    by_cell = [{row.cell: cells_of(row)[2] for row in table.rows} for _, table in columns]
    names = list(dict.fromkeys(name for rows in by_cell for name in rows))
    header = ["cell", *(title for title, _ in columns)]
    return Table(header, [[name, *(rows.get(name, DASH) for rows in by_cell)] for name in names])
