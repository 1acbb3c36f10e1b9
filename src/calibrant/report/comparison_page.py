"""The page of a comparison: which method is better, by how much, and with which doubt."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from calibrant.files import JsonObject, versions
from calibrant.report import comparison_training, figures
from calibrant.report.comparison_answers import changed_prompts
from calibrant.report.comparison_figures import coverage, palette, seeds_as_points, size
from calibrant.report.comparison_figures import pairs as scatter_pairs
from calibrant.report.comparison_files import (
    ComparisonData,
    load_comparison,
    main_tables,
    metric_label,
    metric_words,
    series_label,
)
from calibrant.report.comparison_rows import gain_table, mean_table, spread_table, words_table
from calibrant.report.comparison_words import LEGEND, LEVEL, left_out, metric_notes, number, pairing, verdict
from calibrant.report.confidence import ROWS as CALIBRATION
from calibrant.report.figures import Estimates, rows_of_estimates
from calibrant.report.formats import capital
from calibrant.report.page import Page, Plot, Section, Table, write_page
from calibrant.report.published import Here, Published, gains_here, published
from calibrant.statistics.comparison_table import ComparisonRow, MetricTable

AUC, ACCURACY = "calibration/correctness_auc", "sampled/accuracy"


def write_comparison(directory: str | Path, images: Path | None = None) -> Path:
    """Writes `comparison.html` into the directory of a comparison, beside published tables, and returns its path."""
    data = load_comparison(directory)
    main = main_tables(data.table)
    page = Page(
        kind="comparison",
        name=data.path.resolve().name,
        headline=headline(main),
        subtitle=subtitle(main),
        facts=facts(data),
        options={cell.name: dict(cell.options) for cell in data.measured.cells},
        versions=versions(),
        sections=[
            *_sections(data, main),
            *(_beside(table, gains_here(data.table)) for table in map(published, data.beside)),
        ],
        files="comparison.json, evaluations/",
        notes=[line for cell in data.measured.cells for line in left_out(cell.name, cell.left_out)],
    )
    return write_page(data.path / "comparison.html", page, images)


def headline(main: Sequence[MetricTable]) -> str:
    """Whether a method is shown to be better by the first metric, in one sentence."""
    best = best_row(main)
    if best is None or best.gain is None:
        return "There is nothing to compare: no two cells have finished runs with the same metric."
    gain, where = best.gain, f"{capital(metric_words(main[0].metric))} on {main[0].task}"
    if gain.value > 0 and gain.p_holm is not None and gain.p_holm < LEVEL:
        return f"{where}: {best.cell} is better than {gain.against} by {number(gain.value)}."
    return f"{where}: no method is shown to be better than {gain.against}."


def subtitle(main: Sequence[MetricTable]) -> str:
    """The verdict on the largest gain."""
    best = best_row(main)
    return f"The largest gain: {verdict(best, main[0])}" if best else ""


def best_row(main: Sequence[MetricTable]) -> ComparisonRow | None:
    """The row with the largest gain by the first metric; None without gains."""
    rows = [row for row in main[0].rows if row.gain] if main else []
    return max(rows, key=lambda row: row.gain.value if row.gain else 0.0, default=None)


def facts(data: ComparisonData) -> JsonObject:
    """What was compared, for the head of the page."""
    measured, tables = data.measured, data.table.tables
    prompts = {table.task: table.prompts for table in tables if table.prompts}
    varied = {name: ", ".join(map(str, values)) for name, values in measured.varied.items()}
    return {
        "baseline": measured.baseline,
        "cells": len(measured.cells),
        "seeds per cell": ", ".join(map(str, sorted({len(cell.seeds) for cell in measured.cells}))),
        "settings": measured.settings,
        "evaluated on": ", ".join(f"{task} ({count} prompts)" for task, count in prompts.items()) or None,
        **varied,
    }


def _sections(data: ComparisonData, main: Sequence[MetricTable]) -> Iterator[Section]:
    yield from _tables(data, main)
    yield _forest(main)
    yield from comparison_training.sweeps(data, main)
    yield _seeds(main)
    yield comparison_training.learning(data)
    yield _calibration(data)
    yield comparison_training.cost(data)
    best = best_row(main)
    if best and best.gain:
        key = main[0].task, main[0].metric
        first = next(scores for scores in data.measured.scores if (scores.task, scores.metric) == key)
        yield changed_prompts(data, first, best.gain.against, best.cell)


def _tables(data: ComparisonData, main: Sequence[MetricTable]) -> Iterator[Section]:
    """A section per task: its first metric in full, the others folded."""
    if not main:
        yield Section("table", "Table", missing=["No metric of the answers was measured."])
    for position, task in enumerate(dict.fromkeys(table.task for table in main)):
        first, *others = [table for table in main if table.task == task]
        text = [
            "Look at the interval of the gain first: where it holds 0, this comparison cannot tell the two apart.",
            LEGEND,
            *pairing(data.table),
            *metric_notes(first),
        ]
        folded = {"In words": words_table(first), "Deviations over seeds": spread_table(first)}
        folded |= {metric_label(table.metric): gain_table(table) for table in others}
        title = f"Table: {task}, {metric_label(first.metric)}"
        yield Section(f"table-{position}", title, text, table=gain_table(first), folded=folded)


def _forest(main: Sequence[MetricTable]) -> Section:
    plots = []
    for table in main:
        rows = [row for row in table.rows if row.gain]
        if rows:
            title = f"{metric_label(table.metric)}, on {table.task}"
            caption = "Look for intervals that do not touch the dashed line: only they show a difference."
            draw = rows_of_estimates([row.cell for row in rows], [_estimates(rows)], "gain, with 95% interval")
            plots.append(Plot(title, figures.data_uri([draw], (5.2, 1.2 + 0.3 * len(rows))), caption))
    return Section("gains", "Gains", [], plots, missing=[] if plots else ["No cell has a gain to draw."])


def _estimates(rows: Sequence[ComparisonRow]) -> Estimates:
    gains = [row.gain for row in rows if row.gain]
    nan = float("nan")
    low = [nan if gain.low is None else gain.low for gain in gains]
    high = [nan if gain.high is None else gain.high for gain in gains]
    return Estimates("gain", [gain.value for gain in gains], low, high)


def _seeds(main: Sequence[MetricTable]) -> Section:
    plots = []
    for table in main:
        rows = {row.cell: list(row.by_seed.values()) for row in table.rows}
        before = {row.before for row in table.rows}
        start = next(iter(before)) if len(before) == 1 else None
        draw = seeds_as_points(rows, metric_label(table.metric), float("nan") if start is None else start)
        title = f"{metric_label(table.metric)}, on {table.task}"
        caption = "Look at how far the seeds of one method lie apart: a gain smaller than that needs more of them."
        plots.append(Plot(title, figures.data_uri([draw], (5.2, 1.2 + 0.3 * len(rows))), caption))
    return Section("seeds", "Every seed", [], plots, missing=[] if plots else ["No runs to draw."])


def _calibration(data: ComparisonData) -> Section:
    title = "Calibration beside accuracy"
    by_key = {(table.task, table.metric): table for table in data.table.tables if table.rows}
    tasks = list(dict.fromkeys(task for task, metric in by_key if metric.startswith("calibration/")))
    if not tasks:
        return Section("calibration", title, missing=["No calibration was measured."])
    text = (
        "Confidence is the likelihood of an answer per token; an AUC of 0.5 means that it does not separate right "
        "from wrong answers. Look for methods that gain accuracy and lose this."
    )
    plots = [plot for task in tasks for plot in _calibration_plots(data, by_key.get((task, AUC)), by_key, task)]
    keys = [f"calibration/{name}" for name in CALIBRATION]
    shown = {task: [by_key[task, key] for key in keys if (task, key) in by_key] for task in tasks}
    folded = {f"Calibration on {task}": _calibration_table(tables) for task, tables in shown.items()}
    for task in tasks:
        chosen = _largest_selections([table for key, table in by_key.items() if key[0] == task])
        folded |= {f"One of the sampled answers on {task}, chosen": mean_table(chosen)} if chosen else {}
    first, *others = folded.items()
    return Section("calibration", title, [text], plots, first[1], folded=dict(others))


def _largest_selections(tables: Sequence[MetricTable]) -> list[tuple[str, MetricTable]]:
    """Per rule of selection the table with the most samples, under its name."""
    parts = [(table.metric.split("/"), table) for table in tables if table.metric.startswith("selection/")]
    last = {rule: table for (_, rule, size), table in sorted(parts, key=lambda part: int(part[0][2]))}
    return [(metric_label(table.metric), table) for table in last.values()]


def _calibration_table(tables: Sequence[MetricTable]) -> Table:
    return mean_table([(CALIBRATION[table.metric.partition("/")[2]], table) for table in tables])


def _calibration_plots(
    data: ComparisonData, auc: MetricTable | None, by_key: dict[tuple[str, str], MetricTable], task: str
) -> Iterator[Plot]:
    names = {cell.name: series_label(cell) for cell in data.measured.cells}
    marks = palette(names, data.measured.baseline)
    accuracy = by_key.get((task, ACCURACY))
    if auc and accuracy:
        right = {row.cell: row.by_seed for row in accuracy.rows}
        points = {
            row.cell: [(right[row.cell][seed], value) for seed, value in row.by_seed.items() if seed in right[row.cell]]
            for row in auc.rows
            if row.cell in right
        }
        points = {name: seeds for name, seeds in points.items() if seeds}
        draw = scatter_pairs(points, marks, "accuracy, sampled", "AUC of the confidence")
        caption = "Look for points to the right and below the baseline: better answers, worse doubt."
        yield Plot(f"Accuracy and calibration on {task}", figures.data_uri([draw], size(8, names)), caption, wide=True)
    curves = {
        cell.name: [curve for seed in cell.seeds if (curve := data.curve(task, cell.name, seed))]
        for cell in data.measured.cells
    }
    if any(curves.values()):
        draw = coverage({name: seeds for name, seeds in curves.items() if seeds}, marks)
        caption = "Look at the left: a useful confidence answers the surest questions almost without error."
        yield Plot(f"Precision over coverage on {task}", figures.data_uri([draw], size(8, names)), caption, wide=True)


def _beside(table: Published, here: Here) -> Section:
    title, rows = f"Published: {table.source}", list(table.rows_of_text(here))
    shown = Table(rows[0], rows[1:], text_columns=2)
    return Section(f"beside-{table.name.replace(':', '-')}", title, table.about(), table=shown)
