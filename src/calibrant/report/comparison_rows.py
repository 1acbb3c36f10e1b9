"""The tables of a comparison's page, and its numbers as text."""

from collections.abc import Mapping, Sequence

from calibrant.report.formats import DASH, p_value
from calibrant.report.page import Table
from calibrant.statistics.comparison_table import CellSummary, MetricTable, Row

GAINS = ("cell", "mean ± deviation", "gain", "in %", "95% interval", "P(gain > 0)", "p, Holm")
LIMITS = (
    *("cell", "smallest gain that would show", "seeds needed for its gain"),
    *("ratio of deviations", "p of equal deviations", "power at twice the deviation"),
)


def number(value: float | None) -> str:
    """Three decimals; never `-0.000`; a dash for None.

    >>> number(0.4142), number(-0.0001), number(None)
    ('0.414', '0.000', '–')
    """
    return DASH if value is None else f"{round(value, 3) + 0.0:.3f}"


def signed(value: float | None) -> str:
    """Three decimals with a sign; a dash for None."""
    return DASH if value is None else f"{round(value, 3) + 0.0:+.3f}"


def span(low: float | None, high: float | None) -> str:
    """An interval; a dash for none."""
    return DASH if low is None or high is None else f"[{signed(low)}, {signed(high)}]"


def p_text(p: float) -> str:
    """`= 0.040`, or `< 0.001`.

    >>> p_text(0.04), p_text(1e-9)
    ('= 0.040', '< 0.001')
    """
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def mean_text(row: Row) -> str:
    """`0.414 ± 0.012`; without a deviation the mean alone."""
    return number(row.mean) if row.deviation is None else f"{number(row.mean)} ± {number(row.deviation)}"


def share(value: float | None) -> str:
    """Whole per cent; a dash for None."""
    return DASH if value is None else f"{value:.0%}"


def gain_table(table: MetricTable, cells: Mapping[str, CellSummary]) -> Table:
    """One row per cell: mean, gain over the cell that it is compared with, and how certain that is."""
    several = len({row.gain.against for row in table.rows if row.gain}) > 1
    return Table(GAINS, [_gain_cells(row, cells[row.cell], several) for row in table.rows])


def _gain_cells(row: Row, cell: CellSummary, several: bool) -> list[str]:
    gain = row.gain
    words = [f"over {gain.against}"] if gain and several else []
    words += [f"other {', '.join(cell.other_cost)}"] if cell.other_cost else []
    name = f"{row.cell} ({'; '.join(words)})" if words else row.cell
    if gain is None:
        return [name, mean_text(row), *[DASH] * (len(GAINS) - 2)]
    percent = DASH if gain.percent is None else f"{gain.percent:+.1f}%"
    p = DASH if gain.p_holm is None else p_value(gain.p_holm)
    return [name, mean_text(row), signed(gain.value), percent, span(gain.low, gain.high), share(gain.above_zero), p]


def limits_table(table: MetricTable) -> Table:
    """One row per cell with a gain: what so many seeds and prompts can show, and whether deviations differ."""
    return Table(LIMITS, [_limit_cells(row) for row in table.rows if row.gain])


def _limit_cells(row: Row) -> list[str]:
    gain, test = row.gain, row.stability
    needed = DASH if gain is None or gain.seeds_needed is None else str(gain.seeds_needed)
    ratio = DASH if test is None or test.ratio is None else f"{test.ratio:.2f}"
    p = DASH if test is None or test.p is None else p_value(test.p)
    return [row.cell, number(gain.detectable if gain else None), needed, ratio, p, share(test.power if test else None)]


def mean_table(columns: Sequence[tuple[str, MetricTable]]) -> Table:
    """One row per cell, one column per metric: mean ± deviation over seeds."""
    by_cell = [{row.cell: mean_text(row) for row in table.rows} for _, table in columns]
    names = list(dict.fromkeys(name for rows in by_cell for name in rows))
    header = ["cell", *(title for title, _ in columns)]
    return Table(header, [[name, *(rows.get(name, DASH) for rows in by_cell)] for name in names])
