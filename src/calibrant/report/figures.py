"""The figures of a report: frames of saved numbers in, matplotlib figures out.

Colours are Okabe and Ito's, which stay apart for colour-blind readers. No global state of matplotlib is
touched.
"""

import base64
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullFormatter, PercentFormatter

from calibrant.report.tables import Comparison, Estimate, rank_correlation

BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#8A8F98", "#24292F"
HALF, WIDE = (5.2, 3.0), (9.8, 3.1)
BINS = 60
"""At most this many points along the steps of a band; each pools neighbouring steps."""

STYLE: dict[str, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "calibrant",
    "figure.facecolor": "white",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#B8BDC5",
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECEEF1",
    "xtick.color": "#5B626C",
    "ytick.color": "#5B626C",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}

Draw = Callable[[Axes], None]


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures; a glyph that the font lacks is drawn as a box without a warning."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def data_uri(draw: Sequence[Draw], size: tuple[float, float] = HALF) -> str:
    """Draws panels side by side and returns the SVG as a `data:` address."""
    svg = save(draw, size, "svg")
    return "data:image/svg+xml;base64," + base64.b64encode(without_style(svg)).decode()


def save(draw: Sequence[Draw], size: tuple[float, float], format: str, widths: Sequence[float] | None = None) -> bytes:
    """Draws panels side by side and returns the file's bytes."""
    file = io.BytesIO()
    with style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(draw), squeeze=False, width_ratios=widths)[0]
        for panel, ax in zip(draw, axes, strict=True):
            panel(ax)
        metadata = {"Date": None} if format == "svg" else None
        figure.savefig(file, format=format, dpi=200, metadata=metadata)
    return file.getvalue()


def without_style(svg: bytes) -> bytes:
    """An SVG whose style attributes became plain attributes, so that no security policy can switch them off.

    >>> without_style(b'<g style="fill: #fff; stroke: none"/>')
    b'<g fill="#fff" stroke="none"/>'
    """
    svg = re.sub(rb"<style type=\"text/css\">.*?</style>", b"", svg, flags=re.DOTALL)
    svg = svg.replace(b"<svg ", b'<svg stroke-linejoin="round" stroke-linecap="butt" ', 1)
    return re.sub(rb'style="([^"]*)"', lambda found: _attributes(found[1]), svg)


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
    """A metric by step: every step thin, a running mean thick.

    Args:
        values: the metric, indexed by step.
        label: what the vertical axis measures.
        colour: of both lines.
        share: the metric is a share of 1; the axis runs from 0 to 100%.
        line: a value to compare with, dashed.
        log: a logarithmic axis where values span more than two decades.
    """

    def draw(ax: Axes) -> None:
        span = window(len(values))
        single = len(values) < 10
        ax.plot(values.index, values, color=colour, lw=1 if span > 1 else 1.8, alpha=0.35 if span > 1 else 1,
                marker="o" if single else None, ms=4, label="each step")  # fmt: skip
        if span > 1:
            ax.plot(values.index, smooth(values), color=colour, lw=2.2, label=f"mean over {span} steps")
            _legend_above(ax)
        _compare(ax, line)
        if log and _spans_decades(values):
            _logarithmic(ax)
        if share:
            ax.set_ylim(-0.02, 1.02)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        _step_axis(ax, label)

    return draw


def window(count: int) -> int:
    """Steps in a running mean: odd, about a fifteenth of the run; 1 (no smoothing) under ten steps."""
    return 1 if count < 10 else max(5, count // 15) | 1


def smooth(values: pd.Series) -> pd.Series:
    """Centred running mean; at the ends over the steps that there are."""
    return values.rolling(window(len(values)), center=True, min_periods=1).mean()


def bands(table: pd.DataFrame, label: str, *, colour: str = BLUE, line: float | None = None) -> Draw:
    """A middle line with an inner and an outer band by step; columns as `quantile_bands` returns them."""

    def draw(ax: Axes) -> None:
        marker = "o" if len(table) < 10 else None
        outer, inner, middle = table.attrs["names"]
        ax.fill_between(table["step"], table["low"], table["high"], color=colour, alpha=0.15, lw=0, label=outer)
        if inner:
            ax.fill_between(table["step"], table["q25"], table["q75"], color=colour, alpha=0.3, lw=0, label=inner)
        ax.plot(table["step"], table["middle"], color=colour, lw=2, marker=marker, ms=4, label=middle)
        _compare(ax, line)
        _legend_above(ax)
        _step_axis(ax, label)

    return draw


def quantile_bands(steps: pd.Series, values: pd.Series) -> pd.DataFrame:
    """Quantiles 5, 25, 50, 75 and 95% by step, neighbouring steps pooled in long runs.

    Returns:
        Columns step (mean of the pooled steps), low, q25, middle, q75, high; `attrs["pooled"]` steps a point.
    """
    known = pd.DataFrame({"step": steps, "value": values}).dropna().astype(float)
    pooled = max(1, -(-known["step"].nunique() // BINS))
    rank = known["step"].rank(method="dense").sub(1) // pooled
    by = known.groupby(rank)
    quantiles = by["value"].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack()
    quantiles.columns = pd.Index(["low", "q25", "middle", "q75", "high"])
    table = quantiles.assign(step=by["step"].mean()).reset_index(drop=True)
    table.attrs = {"names": ("5–95%", "25–75%", "median"), "pooled": pooled}
    return table


def logged_bands(low: pd.Series, mean: pd.Series, high: pd.Series) -> pd.DataFrame:
    """The same from what a metrics file keeps: mean, lowest and highest."""
    table = pd.DataFrame({"low": low, "middle": mean, "high": high}).dropna().rename_axis("step").reset_index()
    table.attrs = {"names": ("lowest to highest", "", "mean"), "pooled": 1}
    return table


def before_after(rows: Sequence[Comparison]) -> Draw:
    """Means with 95% intervals, before and after training, a row a metric."""

    def draw(ax: Axes) -> None:
        for y, row in enumerate(rows):
            ax.axhspan(y - 0.5, y + 0.5, color="#F5F6F8" if y % 2 == 0 else "white", lw=0, zorder=0)
            _estimate(ax, row.before, y - 0.14, GREY, "white")
            _estimate(ax, row.after, y + 0.14, BLUE, BLUE)
        ax.set_yticks(range(len(rows)), [shorten(row.label) for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlim(0, max(1.0, ax.get_xlim()[1]))
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("score (0 to 1), with 95% interval")
        ax.legend(handles=[_dot(GREY, "white", "before training"), _dot(BLUE, BLUE, "after training")],
                  loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # fmt: skip

    return draw


def _estimate(ax: Axes, found: Estimate | None, y: float, colour: str, face: str) -> None:
    if found is not None:
        ax.plot([found.low, found.high], [y, y], color=colour, lw=2.4, solid_capstyle="round", zorder=2)
        ax.plot([found.mean], [y], "o", color=colour, mfc=face, mew=1.8, ms=7, zorder=3)


def _dot(colour: str, face: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker="o", mfc=face, mew=1.8, ms=7, lw=2.4, label=label)


def scatter(x: pd.Series, y: pd.Series, x_label: str, y_label: str, colour: str = BLUE, *, log: bool = False) -> Draw:
    """A dot a group, with the rank correlation above; with `log` the vertical axis is logarithmic where it can be."""

    def draw(ax: Axes) -> None:
        alpha = float(np.clip(60 / max(len(x), 1) ** 0.7, 0.12, 0.6))
        ax.scatter(x, y, s=12, color=colour, alpha=alpha, lw=0, rasterized=len(x) > 500)
        rho = rank_correlation(x, y)
        ax.set_title("rank correlation " + ("not defined" if np.isnan(rho) else f"{rho:+.2f}".replace("-", "−")))
        ax.set_xlabel(shorten(x_label))
        ax.set_ylabel(y_label)
        if log and len(y) and y.min() > 0:
            _logarithmic(ax)

    return draw


class Estimates(NamedTuple):
    """One kind of mark in a figure of rows: a value a row, and its interval where there is one."""

    label: str
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def rows_of_estimates(names: Sequence[str], marks: Sequence[Estimates], label: str, line: float = 0.0) -> Draw:
    """Values with intervals, a row a name; the first kind of mark is filled, the second hollow.

    Args:
        names: of the rows, from above.
        marks: one or two kinds.
        label: what the horizontal axis measures.
        line: a value to compare with, dashed.
    """

    def draw(ax: Axes) -> None:
        for number, mark in enumerate(marks):
            colour, shift = (BLUE, ORANGE)[number], (number - (len(marks) - 1) / 2) * 0.3
            rows = [y + shift for y in range(len(names))]
            if mark.low is not None and mark.high is not None:
                ax.hlines(rows, mark.low, mark.high, color=colour, lw=2, alpha=0.55)
            ax.plot(mark.values, rows, "o", color=colour, mfc=(colour, "white")[number], ms=5, label=mark.label)
        ax.axvline(line, color=INK, lw=1, ls=(0, (4, 3)), alpha=0.6, zorder=1)
        ax.set_yticks(range(len(names)), [shorten(name, 34) for name in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlabel(label)
        if len(marks) > 1:
            _legend_above(ax)

    return draw


def counts(table: pd.DataFrame) -> Draw:
    """Bars of counts by step, stacked, a colour a column."""

    def draw(ax: Axes) -> None:
        some = table[table.fillna(0).any(axis=1)]
        base = np.zeros(len(some))
        for (name, values), colour in zip(some.items(), (ORANGE, PURPLE), strict=False):
            filled = values.fillna(0).to_numpy()
            ax.bar(some.index, filled, width=0.9, bottom=base, color=colour, label=name)
            base = base + filled
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        _legend_above(ax)
        _step_axis(ax, "rewards (count)")
        ax.set_xlim(table.index.min() - 0.6, table.index.max() + 0.6)

    return draw


def shorten(text: str, limit: int = 40) -> str:
    """A name as a label: underscores as spaces, cut at a length that fits."""
    text = " ".join(text.replace("_", " ").split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _logarithmic(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _spans_decades(values: pd.Series) -> bool:
    return len(values) > 1 and values.min() > 0 and values.max() / values.min() > 100


def _legend_above(ax: Axes) -> None:
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=3, handlelength=1.2, columnspacing=1.2)


def _compare(ax: Axes, line: float | None) -> None:
    if line is not None:
        ax.axhline(line, color=INK, lw=1, ls=(0, (4, 3)), alpha=0.6, zorder=1)


def _step_axis(ax: Axes, label: str) -> None:
    ax.set_xlabel("training step")
    ax.set_ylabel(shorten(label))
    ax.margins(x=0.02)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
