"""From what was measured to the table of a comparison.

An interval is for new seeds and new prompts of the same kind where a metric has prompts, for new seeds where it has
none, and for new prompts alone where a cell has one seed. Runs of equal seeds are pairs, and a gain is over those seeds
alone that both cells have; without pairs, or where they have none in common, over all seeds of both.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrant.errors import CalibrantError
from calibrant.statistics.comparison_table import (
    CellSummary,
    ComparisonRow,
    ComparisonTable,
    Cost,
    Gain,
    MetricTable,
    Stability,
)
from calibrant.statistics.corrections import holm
from calibrant.statistics.gains import Array, components, difference_of
from calibrant.statistics.measurements import CellMeasurements, Measurements, Scores, lower_is_better
from calibrant.statistics.power import brown_forsythe_p, brown_forsythe_power, detectable_gain, gain_test, seeds_needed

SAME_COST = {"updates": 1.0, "samples": 1.0, "seconds": 1.1}
"""Largest ratio to the baseline, and its inverse, that counts as the same cost; other costs are those of seconds."""

NO_SPREAD = 1e-12  # a standard error below this share of the values is rounding


class SeedValues(NamedTuple):
    """The values of a cell on one metric."""

    cell: str
    seeds: tuple[int, ...]  # ascending
    array: Array  # [S, P]


def compare(measurements: Measurements) -> ComparisonTable:
    """The table of a comparison.

    A cell of another method than the baseline's is compared with the cell that has the baseline's method and its own
    values of the varied options, if there is one; all others with the baseline.

    Raises CalibrantError if the baseline is not a cell or a value is missing for a prompt.
    """
    cells = {cell.name: cell for cell in measurements.cells}
    if measurements.baseline not in cells:
        raise CalibrantError(
            f"the baseline '{measurements.baseline}' is not among the cells; choose one of {', '.join(cells)}"
        )
    baseline = cells[measurements.baseline]
    return ComparisonTable(
        measurements.baseline,
        measurements.settings,
        measurements.pair_seeds,
        measurements.varied,
        tuple(_summary(cell, baseline) for cell in measurements.cells),
        tuple(_table(scores, measurements) for scores in measurements.scores),
    )


def reference_of(cell: CellMeasurements, measurements: Measurements) -> str:
    """Name of the cell that `cell` is compared with; its own name for the baseline."""
    baseline = next(other for other in measurements.cells if other.name == measurements.baseline)
    method = baseline.options.get("method")
    wanted = {name: cell.options.get(name) for name in measurements.varied} | {"method": method}
    if cell.options.get("method") != method:
        for other in measurements.cells:
            if all(other.options.get(name) == value for name, value in wanted.items()):
                return other.name
    return baseline.name


def _summary(cell: CellMeasurements, baseline: CellMeasurements) -> CellSummary:
    base = _means(baseline.cost)
    cost = {name: _cost(name, mean, base.get(name)) for name, mean in _means(cell.cost).items()}
    return CellSummary(cell.name, dict(cell.options), tuple(cell.seeds), dict(cell.left_out), cost)


def _cost(name: str, mean: float, base: float | None) -> Cost:
    ratio = mean / base if base else None
    limit = SAME_COST.get(name, SAME_COST["seconds"])
    return Cost(mean, ratio, ratio is not None and not 1 / limit - 1e-9 <= ratio <= limit + 1e-9)


def _means(cost: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Means over the seeds whose cost is known; without the costs that no seed has."""
    known = {name: [v for v in by_seed.values() if math.isfinite(v)] for name, by_seed in cost.items()}
    return {name: math.fsum(values) / len(values) for name, values in known.items() if values}


def _table(scores: Scores, measurements: Measurements) -> MetricTable:
    """All rows of one metric on one task."""
    values = {cell.name: found for cell in measurements.cells if (found := _seed_values(scores, cell.name))}
    kept = np.ones(max(1, len(scores.prompts)), dtype=bool)
    for found in values.values():
        kept &= np.isfinite(found.array).all(0)
    values = {name: found._replace(array=found.array[:, kept]) for name, found in values.items()} if kept.any() else {}
    rows = [
        _row(
            values[cell.name],
            values.get(reference_of(cell, measurements)),
            _before(cell, scores, kept),
            pair=measurements.pair_seeds,
            falls=not lower_is_better(scores.metric),
        )
        for cell in measurements.cells
        if cell.name in values
    ]
    return MetricTable(
        scores.task,
        scores.metric,
        prompts=int(kept.sum()) if scores.prompts else 0,
        dropped=int((~kept).sum()) if scores.prompts else 0,
        missing=tuple(cell.name for cell in measurements.cells if cell.name not in values),
        rows=_with_holm(rows),
    )


def _seed_values(scores: Scores, cell: str) -> SeedValues | None:
    """The values of a cell without seeds that have none; None where all have none."""
    width = max(1, len(scores.prompts))
    for seed, row in scores.values.get(cell, {}).items():
        if len(row) != width:
            raise CalibrantError(
                f"{scores.task}, {scores.metric}: cell '{cell}' with seed {seed} has {len(row)} values for {width} "
                "prompts; evaluate all cells on the same prompts"
            )
    rows = {seed: row for seed, row in sorted(scores.values.get(cell, {}).items()) if any(map(math.isfinite, row))}
    return SeedValues(cell, tuple(rows), np.array(list(rows.values()), dtype=np.float64)) if rows else None


def _row(
    mine: SeedValues,
    other: SeedValues | None,  # of the cell that it is compared with; itself for the baseline
    before: float | None,
    *,
    pair: bool,
    falls: bool,  # whether a run can collapse: lower is worse
) -> ComparisonRow:
    means, compared = mine.array.mean(1), other if other and other.cell != mine.cell else None
    by_seed = dict(zip(mine.seeds, means.tolist(), strict=True))
    return ComparisonRow(
        mine.cell,
        by_seed,
        float(means.mean()),
        float(means.std(ddof=1)) if len(means) > 1 else None,
        before,
        _collapsed(by_seed, before) if falls else (),
        _gain(mine, compared, pair=pair) if compared else None,
        _stability(means, compared.array.mean(1)) if compared else None,
    )


def _collapsed(by_seed: Mapping[int, float], before: float | None) -> tuple[int, ...]:
    usual = max(median(by_seed.values()), before or 0.0)
    return tuple(seed for seed, value in by_seed.items() if usual > 0 and value < usual / 2)


def _before(cell: CellMeasurements, scores: Scores, kept: NDArray[np.bool_]) -> float | None:
    """The value before training of the cell's model; of the only one, if the model is not among the cell's options."""
    models = scores.before
    model = str(cell.options.get("model", next(iter(models)) if len(models) == 1 else ""))
    row = np.array(models.get(model, ()), dtype=np.float64)
    value = float(row[kept].mean()) if row.shape == kept.shape else math.nan
    return value if math.isfinite(value) else None


def _gain(mine: SeedValues, other: SeedValues, *, pair: bool) -> Gain:
    """The gain of one cell over another, without Holm's correction."""
    pairs = tuple(seed for seed in mine.seeds if seed in other.seeds) if pair else ()
    x, y = (cell.array[[cell.seeds.index(seed) for seed in pairs or cell.seeds]] for cell in (mine, other))
    parts = components(x, y, paired=bool(pairs))
    result = difference_of(x.mean() - y.mean(), parts)
    value, error, df, base = float(result.value), float(result.standard_error), float(result.df), float(y.mean())
    percent = 100 * value / abs(base) if base else None
    if df == 0 or error <= NO_SPREAD * max(np.abs(x).max(), np.abs(y).max()):
        return Gain(other.cell, value, percent, "", pairs, *[None] * 9)
    low, high = result.interval()
    return Gain(
        other.cell, value, percent, _over(parts.df, parts.prompt_df), pairs, error, df, float(low), float(high),
        p=float(result.p()), p_holm=None, above_zero=float(result.probability_above_zero()),
        detectable=detectable_gain(gain_test(parts)), seeds_needed=seeds_needed(value, parts),
    )  # fmt: skip


def _over(seed_df: tuple[int, ...], prompt_df: int) -> str:
    if min(seed_df) == 0:
        return "prompts"
    return "seeds and prompts" if prompt_df else "seeds"


def _stability(x: Array, y: Array) -> Stability:
    """Comparison of the deviations of seed means."""
    deviations = [v.std(ddof=1) if len(v) > 1 else math.nan for v in (x, y)]
    ratio = float(deviations[0] / deviations[1]) if deviations[1] > 0 else math.nan
    return Stability(
        ratio if math.isfinite(ratio) else None, brown_forsythe_p(x, y), brown_forsythe_power(len(x), len(y))
    )


def _with_holm(rows: list[ComparisonRow]) -> tuple[ComparisonRow, ...]:
    """The rows with p-values adjusted for all comparisons among them."""
    tested = [row.cell for row in rows if row.gain and row.gain.p is not None]
    p = [row.gain.p for row in rows if row.gain and row.gain.p is not None]
    adjusted = dict(zip(tested, holm(p), strict=True))
    return tuple(
        replace(row, gain=replace(row.gain, p_holm=adjusted[row.cell])) if row.gain and row.cell in adjusted else row
        for row in rows
    )
