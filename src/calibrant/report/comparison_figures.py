"""Figures of a comparison: a colour per series of cells, bands from the lowest to the highest seed."""

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from calibrant.report.figures import BLUE, DASHED, GREEN, GREY, INK, ORANGE, PURPLE, WIDE, Draw, logarithmic, window
from calibrant.report.formats import shorten

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#8B5A2B", "#F0569A")
Dash = str | tuple[int, tuple[float, ...]]
DASHES: tuple[Dash, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))
MARKERS = "osD^vPX*"
Runs = Mapping[int, Sequence[float]]  # seed -> values


class Mark(NamedTuple):
    """How a series is drawn in every figure."""

    colour: str
    dash: Dash
    marker: str


def palette(series: Iterable[str], baseline: str) -> dict[str, Mark]:
    """Series -> its mark; the baseline is grey."""
    names = list(dict.fromkeys(series))
    marks = itertools.product(DASHES, zip(COLOURS, MARKERS, strict=True))
    others = (name for name in names if name != baseline)
    made = {name: Mark(colour, dash, marker) for name, (dash, (colour, marker)) in zip(others, marks, strict=False)}
    return {name: made.get(name, Mark(GREY, "-", "o")) for name in names}


def seed_band(runs: Runs, smooth: bool = True) -> pd.DataFrame:
    """Mean, lowest and highest value over seeds by step (from 1), each run smoothed by a running mean."""
    table = pd.DataFrame({seed: pd.Series(list(values), dtype=float) for seed, values in runs.items()})
    table.index = table.index + 1
    if smooth and window(len(table)) > 1:
        table = table.rolling(window(len(table)), center=True, min_periods=1).mean()
    return pd.DataFrame({"mean": table.mean(axis=1), "low": table.min(axis=1), "high": table.max(axis=1)}).dropna()


def curves(
    series: Mapping[str, Runs], marks: Mapping[str, Mark], label: str, *, title: str = "", legend: bool = True,
    line: float | None = None, limits: tuple[float, float] | None = None, log: bool = False,
) -> Draw:  # fmt: skip
    """A metric of training by step, one line with a band per series."""

    def draw(ax: Axes) -> None:
        for name, runs in series.items():
            table, mark = seed_band(runs), marks[name]
            ax.fill_between(table.index, table["low"], table["high"], color=mark.colour, alpha=0.13, lw=0)
            ax.plot(table.index, table["mean"], color=mark.colour, ls=mark.dash, lw=1.9, label=shorten(name))
        if line is not None:
            ax.axhline(line, **DASHED, zorder=1)
        if log:
            logarithmic(ax)
        if limits:
            ax.set_ylim(limits)
        ax.set(xlabel="training step", ylabel=shorten(label), title=shorten(title, 44))
        ax.margins(x=0.02)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if legend:
            _legend(ax)

    return draw


def value_limits(series: Iterable[Runs]) -> tuple[float, float] | None:
    """Common limits of an axis for the bands of several panels; None without a spread."""
    tables = [seed_band(runs) for runs in series]
    low = min((table["low"].min() for table in tables if len(table)), default=math.nan)
    high = max((table["high"].max() for table in tables if len(table)), default=math.nan)
    if not high > low:
        return None
    return float(low - 0.04 * (high - low)), float(high + 0.04 * (high - low))


def seeds_as_points(rows: Mapping[str, Sequence[float]], label: str, before: float = math.nan) -> Draw:
    """One row per name from the top: each seed a point, the mean a bar; a dashed line before training."""

    def draw(ax: Axes) -> None:
        for y, values in enumerate(rows.values()):
            ax.axhspan(y - 0.5, y + 0.5, color="#F5F6F8" if y % 2 == 0 else "white", lw=0, zorder=0)
            ax.plot(values, [y] * len(values), "o", color=BLUE, mfc="none", mew=1.5, ms=6, zorder=3)
            ax.plot([_mean(values)] * 2, [y - 0.32, y + 0.32], color=INK, lw=2.2, solid_capstyle="butt", zorder=2)
        if not math.isnan(before):
            ax.axvline(before, **DASHED, zorder=1, label="before training")
            ax.legend(loc="lower right", bbox_to_anchor=(1, 0.99))
        ax.set_yticks(range(len(rows)), [shorten(name, 34) for name in rows])
        ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=shorten(label))
        ax.grid(axis="y", visible=False)

    return draw


Sweep = Mapping[str, Mapping[object, Sequence[float]]]
"""Series -> value of the varied option, or None for a cell without that option -> values of the seeds."""


def against(option: str, sweep: Sweep, marks: Mapping[str, Mark], label: str, *, share: bool = False) -> Draw:
    """A metric against the values of an option: mean, band from lowest to highest seed, seeds as points.

    A series without the option is a dashed line. Values that are no numbers stand side by side; positive ones that
    span more than a decade stand on a logarithmic axis. `share` draws means alone, from 0 to 1.
    """
    values = list(dict.fromkeys(value for points in sweep.values() for value in points if value is not None))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    where = {value: float(value) if numeric else float(i) for i, value in enumerate(values)}  # type: ignore[arg-type]

    def draw(ax: Axes) -> None:
        for name, points in sweep.items():
            placed = {where[value]: y for value, y in points.items() if value is not None}
            _sweep_line(ax, shorten(name), placed, marks[name], share)
            if None in points:
                ax.axhline(_mean(points[None]), color=marks[name].colour, lw=1.4, ls=(0, (2, 2)), label=shorten(name))
        if numeric and min(where.values(), default=0) > 0 and max(where.values()) / min(where.values()) > 10:
            ax.set_xscale("log")
        if numeric or len(values) < 8:
            ax.set_xticks(list(where.values()), [shorten(f"{v:g}" if numeric else str(v), 24) for v in where])
            ax.minorticks_off()
        if share:
            ax.set_ylim(-0.03, 1.03)
        ax.set(xlabel=shorten(option), ylabel=shorten(label))
        _legend(ax)

    return draw


def _sweep_line(ax: Axes, name: str, points: Mapping[float, Sequence[float]], mark: Mark, share: bool) -> None:
    kept = {x: [v for v in points[x] if not math.isnan(v)] for x in sorted(points)}
    kept = {x: values for x, values in kept.items() if values}
    if not kept:
        return
    x = list(kept)
    if not share:
        ax.fill_between(x, [min(v) for v in kept.values()], [max(v) for v in kept.values()], color=mark.colour,
                        alpha=0.13, lw=0)  # fmt: skip
        for position, values in kept.items():
            ax.plot([position] * len(values), values, mark.marker, color=mark.colour, mfc="none", ms=4, alpha=0.6)
    ax.plot(x, [_mean(v) for v in kept.values()], color=mark.colour, ls=mark.dash, marker=mark.marker, ms=5, lw=1.9,
            label=name)  # fmt: skip


def pairs(points: Mapping[str, Sequence[tuple[float, float]]], marks: Mapping[str, Mark], x: str, y: str) -> Draw:
    """One metric over another: each seed a small mark, the mean over seeds a large one."""

    def draw(ax: Axes) -> None:
        for name, seeds in points.items():
            mark, (xs, ys) = marks[name], zip(*seeds, strict=True)
            ax.plot(xs, ys, mark.marker, color=mark.colour, mfc="none", ms=4, alpha=0.6)
            ax.plot([_mean(xs)], [_mean(ys)], mark.marker, color=mark.colour, ms=8, label=shorten(name))
        ax.set(xlabel=shorten(x), ylabel=shorten(y, 60))
        _legend(ax)

    return draw


def coverage(runs: Mapping[str, Sequence[Sequence[tuple[float, float]]]], marks: Mapping[str, Mark]) -> Draw:
    """Precision over coverage: the mean over seeds, interpolated, with a band from the lowest to the highest."""
    start = max((points[0][0] for seeds in runs.values() for points in seeds), default=0.0)
    grid = np.linspace(start, 1, 50)

    def draw(ax: Axes) -> None:
        for name, seeds in runs.items():
            lines = np.stack([np.interp(grid, *np.transpose(points)) for points in seeds])
            mark = marks[name]
            ax.fill_between(grid, lines.min(0), lines.max(0), color=mark.colour, alpha=0.13, lw=0)
            ax.plot(grid, lines.mean(0), color=mark.colour, ls=mark.dash, lw=1.9, label=shorten(name))
        ax.set(xlabel="share of answers kept", ylabel="share of right answers", xlim=(0, 1))
        _legend(ax)

    return draw


def stacked_bars(rows: Mapping[str, Mapping[str, float]], label: str) -> Draw:
    """Horizontal bars, one per name from the top, stacked by part."""
    parts = list(dict.fromkeys(part for bars in rows.values() for part in bars))

    def draw(ax: Axes) -> None:
        base = np.zeros(len(rows))
        for part, colour in zip(parts, itertools.cycle((*COLOURS, GREY, INK))):
            widths = np.array([bars.get(part, 0.0) for bars in rows.values()])
            ax.barh(range(len(rows)), widths, left=base, height=0.66, color=colour, label=shorten(part))
            base = base + widths
        ax.set_yticks(range(len(rows)), [shorten(name, 34) for name in rows])
        ax.set(ylim=(len(rows) - 0.4, -0.6), xlabel=label)
        ax.grid(axis="y", visible=False)
        _legend(ax)

    return draw


def size(rows: float, series: Iterable[str]) -> tuple[float, float]:
    """Inches of a wide figure with so many rows of 0.3 inches, and a legend below."""
    names = list(series)
    return WIDE[0], 0.9 + 0.3 * rows + 0.19 * math.ceil(len(names) / _columns(names))


def _columns(names: Sequence[str]) -> int:
    """Columns of a legend below a wide figure."""
    return max(1, min(6, 120 // (max(len(shorten(name)) for name in names) + 8))) if names else 1


def _legend(ax: Axes) -> None:
    """Below the figure, with everything that its panels have drawn so far."""
    every = [pair for other in ax.figure.axes for pair in zip(*other.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in every}
    if handles:
        names = list(handles)
        ax.figure.legend(handles.values(), names, loc="outside lower left", ncols=_columns(names), fontsize="small")


def _mean(values: Iterable[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no seed has a number
        return float(np.nanmean(list(values)))
