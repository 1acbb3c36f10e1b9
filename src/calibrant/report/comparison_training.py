"""The sections of a comparison's page about training: learning curves, varied options, cost."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from calibrant.report import figures
from calibrant.report.comparison_figures import (
    Mark,
    Runs,
    Sweep,
    against,
    curves,
    palette,
    size,
    stacked_bars,
    value_limits,
)
from calibrant.report.comparison_files import ComparisonData, metric_label, series_label
from calibrant.report.comparison_table import cost_rows
from calibrant.report.formats import DASH, plain
from calibrant.report.page import Plot, Section, Table
from calibrant.statistics.comparison_table import Cost, MetricTable
from calibrant.statistics.measurements import CellMeasurements

PANELS = 3  # side by side


class Curve(NamedTuple):
    """A metric of training: title, axis, what to look for, a reference line, whether the axis is logarithmic."""

    title: str
    label: str
    caption: str
    line: float | None = None
    log: bool = False


CURVES = {
    "reward": Curve(
        "Mean reward",
        "reward",
        "Look for the curve that rises and stays up; its prompts change from step to step, so that the table decides.",
    ),
    "kl": Curve(
        "KL divergence from the starting policy",
        "KL (nats)",
        "Look for curves that run away: such a policy has often forgotten more than it learned.",
    ),
    "entropy": Curve(
        "Entropy of the policy",
        "entropy (nats per token)",
        "Look for a fall to 0 early in training: answers no longer differ, and there is nothing left to learn from.",
    ),
    "grad_norm": Curve(
        "Gradient norm, before clipping",
        "gradient norm",
        "Look for spikes and for growth: steady norms are what weights by uncertainty promise.",
        log=True,
    ),
    "group/weight/mean": Curve(
        "Mean weight",
        "mean weight",
        "Look for means away from 1: they are another learning rate, and part of what a gain may come from.",
        line=1.0,
    ),
    "group/weight/std": Curve(
        "Spread of the weights",
        "standard deviation of the weights",
        "Look for methods near 0: their weights hardly differ, so that they train as plain GRPO does.",
    ),
    "group/uninformative": Curve(
        "Groups without reward spread",
        "share of groups",
        "Look for growth: these groups have no gradient, and their prompts have become too easy or stay too hard.",
    ),
    "completions/mean_length": Curve(
        "Length of completions", "tokens", "Look for length that grows while the reward does not."
    ),
}
"""Metric of training -> how it is drawn; others are not."""


def learning(data: ComparisonData) -> Section:
    """Every curve of training, a panel per combination of varied values."""
    panels, marks = _panels(data), _marks(data)
    plots = [plot for name, about in CURVES.items() for plot in _curve_plots(name, about, panels, marks)]
    text = "Lines are means over seeds, smoothed; bands go from the lowest to the highest seed."
    missing = [] if plots else ["No metrics of training are saved."]
    return Section("learning", "Learning curves", [text] if plots else [], plots, missing=missing)


def _marks(data: ComparisonData) -> dict[str, Mark]:
    names = {cell.name: series_label(cell, data.measured.varied) for cell in data.measured.cells}
    return palette(names.values(), names.get(data.measured.baseline, ""))


def _panels(data: ComparisonData) -> dict[str, list[tuple[str, CellMeasurements]]]:
    """Values of the varied options, in words -> series and cell; a cell without such options is in every panel."""
    varied = data.measured.varied
    keys = {cell.name: _values(cell, varied) for cell in data.measured.cells}
    names = list(dict.fromkeys(key for key in keys.values() if key)) or [""]
    return {
        name: [(series_label(cell, varied), cell) for cell in data.measured.cells if keys[cell.name] in (name, "")]
        for name in names
    }


def _values(cell: CellMeasurements, varied: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {plain(cell.options[name])}" for name in varied if name in cell.options)


def _curve_plots(
    metric: str, about: Curve, panels: Mapping[str, Sequence[tuple[str, CellMeasurements]]], marks: Mapping[str, Mark]
) -> Iterator[Plot]:
    drawn = {title: _runs(metric, cells) for title, cells in panels.items()}
    drawn = {title: series for title, series in drawn.items() if series}
    every = [runs for series in drawn.values() for runs in series.values()]
    log = about.log and _spans_decades(value for runs in every for values in runs.values() for value in values)
    limits = None if log else value_limits(every)
    names = list(drawn)
    for number, titles in enumerate(names[i : i + PANELS] for i in range(0, len(names), PANELS)):
        draws = [
            curves(drawn[title], marks, about.label, title=title, legend=title == titles[-1], line=about.line,
                   limits=limits, log=log)
            for title in titles
        ]  # fmt: skip
        more = f" ({number + 1})" if len(drawn) > PANELS else ""
        yield Plot(about.title + more, figures.data_uri(draws, size(8, marks)), about.caption, wide=True)


def _spans_decades(values: Iterable[float]) -> bool:
    """Whether values are positive and span more than two decades."""
    numbers = [value for value in values if not math.isnan(value)]
    return min(numbers) > 0 and max(numbers) > 100 * min(numbers)


def _runs(metric: str, cells: Sequence[tuple[str, CellMeasurements]]) -> dict[str, Runs]:
    return {
        series: cell.curves[metric]
        for series, cell in cells
        if any(not math.isnan(value) for values in cell.curves.get(metric, {}).values() for value in values)
    }


def sweeps(data: ComparisonData, main: Sequence[MetricTable]) -> Iterator[Section]:
    """A section per varied option with at least two values: every metric of the answers against it, and collapses."""
    for option, values in data.measured.varied.items():
        if len(values) < 2:
            continue
        first = {table.task: table for table in reversed(main)}  # whose collapses are drawn
        plots = [plot for table in main for plot in _sweep_plots(data, option, table, table is first[table.task])]
        text = "Points are seeds, lines their means, bands go from the lowest to the highest seed."
        yield Section(f"varied-{option}", f"Against {plain(option).replace('_', ' ')}", [text], plots)


def _sweep_plots(data: ComparisonData, option: str, table: MetricTable, first: bool) -> Iterator[Plot]:
    name, where = option.replace("_", " "), f"{metric_label(table.metric)}, on {table.task}"
    caption = "Look for values where one band lies wholly above another's, and for where curves break down."
    finals = _sweep(data, option, {row.cell: list(row.by_seed.values()) for row in table.rows})
    label, marks = metric_label(table.metric), palette(finals, _baseline_series(data, option))
    uri = figures.data_uri([against(option, finals, marks, label)], size(8, marks))
    yield Plot(f"{where}, against {name}", uri, caption, wide=True)
    collapses = {row.cell: [float(seed in row.collapsed) for seed in row.by_seed] for row in table.rows if first}
    if any(any(values) for values in collapses.values()):
        shares = _sweep(data, option, collapses)
        draw = against(option, shares, marks, "share of runs", share=True)
        caption = (
            "Runs that end below half of their value before training, or of the median over seeds. Look for the "
            "method that breaks last."
        )
        yield Plot(f"Collapsed runs by {where}", figures.data_uri([draw], size(6, marks)), caption, wide=True)


def _sweep(data: ComparisonData, option: str, values: Mapping[str, Sequence[float]]) -> Sweep:
    sweep: dict[str, dict[object, Sequence[float]]] = {}
    for cell in data.measured.cells:
        if cell.name in values:
            sweep.setdefault(series_label(cell, [option]), {})[cell.options.get(option)] = values[cell.name]
    return sweep


def _baseline_series(data: ComparisonData, option: str) -> str:
    return next((series_label(c, [option]) for c in data.measured.cells if c.name == data.measured.baseline), "")


def cost(data: ComparisonData) -> Section:
    """Updates, samples and seconds per run, and seconds per part of a step."""
    cells, title = data.table.cells, "Cost"
    if not any(cell.cost for cell in cells):
        return Section("cost", title, missing=["No cost was measured."])
    parts = list(dict.fromkeys(name for cell in cells for name in cell.cost if name.startswith("seconds/")))
    header, *rows = cost_rows(cells)
    bars = {
        cell.name: {name.removeprefix("seconds/"): _per_update(cell.cost, name) for name in parts if name in cell.cost}
        for cell in cells
    }
    caption = "Look for parts that a method has and the baseline has not: they are its overhead."
    uri = figures.data_uri([stacked_bars(bars, "seconds per update")], size(1.1 * len(cells), parts))
    plots = [Plot("Seconds per part of a step", uri, caption, wide=True)] if parts else []
    text = (
        "Means over seeds, with the ratio to the baseline, and an asterisk where it differs. A gain that costs more "
        "updates, samples or seconds is not a gain of the method alone."
    )
    folded = {"Seconds per update by part": _parts_table(bars, parts)} if parts else {}
    return Section("cost", title, [text], plots, Table(header, rows), folded=folded)


def _per_update(cost: Mapping[str, Cost], name: str) -> float:
    updates = cost["updates"].mean if "updates" in cost else 0.0
    return cost[name].mean / updates if updates else 0.0


def _parts_table(bars: Mapping[str, Mapping[str, float]], parts: Sequence[str]) -> Table:
    names = [part.removeprefix("seconds/") for part in parts]
    rows = [[cell, *(f"{values[n]:.3f}" if n in values else DASH for n in names)] for cell, values in bars.items()]
    return Table(["cell", *(name.replace("_", " ") for name in names)], rows)
