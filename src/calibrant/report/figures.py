"""Figures of a report, drawn by matplotlib from data frames.

Colours are Okabe and Ito's, which colour-blind readers can tell apart. Matplotlib's global state is left alone.
"""

import base64
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullFormatter, PercentFormatter

from calibrant.report.evaluations import BeforeAndAfter, Estimate
from calibrant.report.formats import shorten

BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#8A8F98", "#24292F"
HALF, WIDE = (5.2, 3.0), (9.8, 3.1)
BINS = 60  # most points of a band along the steps; in long runs each pools neighbouring steps
STYLE = Path(__file__).with_name("figures.mplstyle")
DASHED: dict[str, Any] = {"color": INK, "lw": 1, "ls": (0, (4, 3)), "alpha": 0.6}

Draw = Callable[[Axes], None]  # draws one panel


def data_uri(panels: Sequence[Draw], size: tuple[float, float] = HALF) -> str:
    """Panels side by side as the `data:` URI of an SVG; `size` in inches."""
    svg = save_figure(panels, size, "svg")
    return "data:image/svg+xml;base64," + base64.b64encode(without_style(svg)).decode()


def save_figure(
    panels: Sequence[Draw], size: tuple[float, float], format: str, widths: Sequence[float] | None = None
) -> bytes:
    """Panels side by side as the bytes of an image file: "svg", or "png" with 200 dots per inch.

    Args:
        size: width and height in inches.
        widths: relative widths of the panels; equal when None.
    """
    file = io.BytesIO()
    with mpl.style.context(STYLE), warnings.catch_warnings():
        # prompts have characters that the font lacks; they become boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
        for panel, ax in zip(panels, axes, strict=True):
            panel(ax)
        metadata = {"Date": None} if format == "svg" else None  # the same numbers make the same bytes
        figure.savefig(file, format=format, dpi=200, metadata=metadata)
    return file.getvalue()


def without_style(svg: bytes) -> bytes:
    """An SVG with presentation attributes in place of style attributes, which a security policy would block.

    >>> without_style(b'<g style="fill: #fff; stroke: none"/>')
    b'<g fill="#fff" stroke="none"/>'
    """
    svg = re.sub(rb"<style type=\"text/css\">.*?</style>", b"", svg, flags=re.DOTALL)
    svg = svg.replace(b"<svg ", b'<svg stroke-linejoin="round" stroke-linecap="butt" ', 1)
    return re.sub(rb'style="([^"]*)"', lambda match: _attributes(match[1]), svg)


def _attributes(style: bytes) -> bytes:
    pairs = [part.partition(b":") for part in style.split(b";") if part.strip()]
    return b" ".join(b'%s="%s"' % (name.strip(), value.strip()) for name, _, value in pairs)


def curve(
    values: pd.Series,
    label: str,
    *,
    colour: str = BLUE,
    share: bool = False,
    line: float | None = None,
    log: bool = False,
) -> Draw:
    """A metric by step, `values` indexed by step: each step thin, a running mean thick.

    The axis of a `share` runs from 0 to 100%; with `log` it is logarithmic if values span more than two decades.
    """

    def draw(ax: Axes) -> None:
        span = window(len(values))
        single = len(values) < 10
        ax.plot(values.index, values, color=colour, lw=1 if span > 1 else 1.8, alpha=0.35 if span > 1 else 1,
                marker="o" if single else None, ms=4, label="each step")  # fmt: skip
        if span > 1:
            mean = values.rolling(span, center=True, min_periods=1).mean()
            ax.plot(values.index, mean, color=colour, lw=2.2, label=f"mean over {span} steps")
            _legend_above(ax)
        if log and len(values) > 1 and values.min() > 0 and values.max() / values.min() > 100:
            logarithmic(ax)
        if share:
            ax.set_ylim(-0.02, 1.02)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        _step_axis(ax, label, line)

    return draw


def window(count: int) -> int:
    """Steps in a running mean: odd, about a fifteenth of the run; 1 (no smoothing) below ten steps."""
    return 1 if count < 10 else max(5, count // 15) | 1


def bands(table: pd.DataFrame, label: str, *, colour: str = BLUE, line: float | None = None) -> Draw:
    """A middle line with an inner and an outer band by step, from `quantile_bands` or `logged_bands`."""

    def draw(ax: Axes) -> None:
        marker = "o" if len(table) < 10 else None
        outer, inner, middle = table.attrs["names"]
        ax.fill_between(table["step"], table["low"], table["high"], color=colour, alpha=0.15, lw=0, label=outer)
        if inner:
            ax.fill_between(table["step"], table["q25"], table["q75"], color=colour, alpha=0.3, lw=0, label=inner)
        ax.plot(table["step"], table["middle"], color=colour, lw=2, marker=marker, ms=4, label=middle)
        _legend_above(ax)
        _step_axis(ax, label, line)

    return draw


def quantile_bands(steps: pd.Series, values: pd.Series) -> pd.DataFrame:
    """Quantiles 5, 25, 50, 75 and 95% by step (low, q25, middle, q75, high), neighbouring steps pooled in long runs.

    `step` is the mean of the pooled steps, `attrs["pooled"]` their number per point.
    """
    rows = pd.DataFrame({"step": steps, "value": values}).dropna().astype(float)
    pooled = max(1, -(-rows["step"].nunique() // BINS))
    rank = rows["step"].rank(method="dense").sub(1) // pooled
    by = rows.groupby(rank)
    quantiles = by["value"].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack()
    quantiles.columns = pd.Index(["low", "q25", "middle", "q75", "high"])
    table = quantiles.assign(step=by["step"].mean()).reset_index(drop=True)
    table.attrs = {"names": ("5–95%", "25–75%", "median"), "pooled": pooled}
    return table


def logged_bands(low: pd.Series, mean: pd.Series, high: pd.Series) -> pd.DataFrame:
    """Bands from the metrics file: lowest, mean and highest value by step."""
    table = pd.DataFrame({"low": low, "middle": mean, "high": high}).dropna().rename_axis("step").reset_index()
    table.attrs = {"names": ("lowest to highest", "", "mean"), "pooled": 1}
    return table


def before_after(rows: Sequence[BeforeAndAfter]) -> Draw:
    """Means with 95% intervals, before and after training, one row per metric."""

    def draw(ax: Axes) -> None:
        for y, row in enumerate(rows):
            ax.axhspan(y - 0.5, y + 0.5, color="#F5F6F8" if y % 2 == 0 else "white", lw=0, zorder=0)
            _estimate(ax, row.before, y - 0.14, GREY, "white")
            _estimate(ax, row.after, y + 0.14, BLUE, BLUE)
        ax.set_yticks(range(len(rows)), [shorten(row.label) for row in rows])
        ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, max(1.0, ax.get_xlim()[1])))
        ax.set_xlabel("score (0 to 1), with 95% interval")
        ax.grid(axis="y", visible=False)
        ax.legend(handles=[_dot(GREY, "white", "before training"), _dot(BLUE, BLUE, "after training")],
                  loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # fmt: skip

    return draw


def _estimate(ax: Axes, value: Estimate | None, y: float, colour: str, face: str) -> None:
    if value is not None:
        ax.plot([value.low, value.high], [y, y], color=colour, lw=2.4, solid_capstyle="round", zorder=2)
        ax.plot([value.mean], [y], "o", color=colour, mfc=face, mew=1.8, ms=7, zorder=3)


def _dot(colour: str, face: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker="o", mfc=face, mew=1.8, ms=7, lw=2.4, label=label)


def scatter(x: pd.Series, y: pd.Series, x_label: str, y_label: str, colour: str = BLUE, *, log: bool = False) -> Draw:
    """One dot per group, the rank correlation above; with `log` a logarithmic vertical axis if all y are positive."""

    def draw(ax: Axes) -> None:
        alpha = float(np.clip(60 / max(len(x), 1) ** 0.7, 0.12, 0.6))
        ax.scatter(x, y, s=12, color=colour, alpha=alpha, lw=0, rasterized=len(x) > 500)
        rho = pd.concat([x, y], axis=1).astype(float).corr("spearman", min_periods=3).iloc[0, 1]
        title = f"rank correlation {'not defined' if np.isnan(rho) else f'{rho:+.2f}'}"
        ax.set(title=title, xlabel=shorten(x_label), ylabel=y_label)
        if log and len(y) and y.min() > 0:
            logarithmic(ax)

    return draw


class Estimates(NamedTuple):
    """One series in a figure of rows: a value per row, with its interval if it has one."""

    label: str
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def rows_of_estimates(names: Sequence[str], marks: Sequence[Estimates], label: str, line: float = 0.0) -> Draw:
    """Values with intervals, one row per name from the top, and a dashed line at a reference value.

    The first series has filled marks, a second one hollow ones.
    """

    def draw(ax: Axes) -> None:
        for number, mark in enumerate(marks):
            colour, shift = (BLUE, ORANGE)[number], (number - (len(marks) - 1) / 2) * 0.3
            rows = [y + shift for y in range(len(names))]
            if mark.low is not None and mark.high is not None:
                ax.hlines(rows, mark.low, mark.high, color=colour, lw=2, alpha=0.55)
            ax.plot(mark.values, rows, "o", color=colour, mfc=(colour, "white")[number], ms=5, label=mark.label)
        ax.axvline(line, **DASHED, zorder=1)
        ax.set_yticks(range(len(names)), [shorten(name, 34) for name in names])
        ax.set(ylim=(len(names) - 0.4, -0.6), xlabel=label)
        if len(marks) > 1:
            _legend_above(ax)

    return draw


def kept(curves: Mapping[str, pd.DataFrame], column: str, label: str) -> Draw:
    """A line per name: a column over `share`, the share of groups that is kept; a dashed line at 1."""
    colours = (BLUE, ORANGE, GREEN, PURPLE, GREY, INK)

    def draw(ax: Axes) -> None:
        for number, (name, curve) in enumerate(curves.items()):
            marker = "os^vDx"[number % len(colours)]
            ax.plot(curve["share"], curve[column], f"{marker}-", color=colours[number % len(colours)], ms=3, label=name)
        ax.axhline(1.0, **DASHED, zorder=1)
        ax.set(xlim=(0, 1.02), ylim=(0, None), xlabel="share of groups kept", ylabel=label)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.legend(fontsize="x-small", frameon=False)

    return draw


def stacked_counts(table: pd.DataFrame) -> Draw:
    """Bars of counts by step, stacked, one colour per column."""

    def draw(ax: Axes) -> None:
        rows = table[table.fillna(0).any(axis=1)]
        base = np.zeros(len(rows))
        for (name, values), colour in zip(rows.items(), (ORANGE, PURPLE), strict=False):
            heights = values.fillna(0).to_numpy()
            ax.bar(rows.index, heights, width=0.9, bottom=base, color=colour, label=name)
            base = base + heights
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_above(ax)
        _step_axis(ax, "rewards (count)")
        ax.set_xlim(table.index.min() - 0.6, table.index.max() + 0.6)

    return draw


def logarithmic(ax: Axes) -> None:
    """A logarithmic vertical axis with plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _legend_above(ax: Axes) -> None:
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3, handlelength=1.2, columnspacing=1.2)


def _step_axis(ax: Axes, label: str, line: float | None = None) -> None:
    if line is not None:
        ax.axhline(line, **DASHED, zorder=1)
    ax.set(xlabel="training step", ylabel=shorten(label))
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
