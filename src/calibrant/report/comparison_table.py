"""The table of a comparison as plain text, Markdown, LaTeX (booktabs) and CSV.

Names and reasons come from options, models and errors: they are escaped for each format, and line breaks and control
characters are gone.
"""

import csv
import io
import re
import textwrap
from collections.abc import Sequence

from calibrant.report.comparison_words import LEGEND, about, metric_notes, number, verdict
from calibrant.report.formats import DASH, middle_cut, p_value
from calibrant.statistics.comparison_table import CellSummary, ComparisonRow, ComparisonTable, Gain, MetricTable

WIDTH = 120
GAIN_HEADERS = ("gain", "in %", "95% interval", "p, Holm", "P(gain>0)", "detectable", "needed")
HEADERS = ("cell", "seeds", "mean ± dev", *GAIN_HEADERS)
COSTS = ("updates", "samples", "seconds")


def headline(table: ComparisonTable, metrics: Sequence[str] | None = None) -> list[MetricTable]:
    """The tables of the named metrics; by default of sampled answers, or all where there are none."""
    if metrics is not None:
        return [part for part in table.tables if part.metric in metrics]
    return [part for part in table.tables if part.metric.startswith("sampled/")] or list(table.tables)


def as_text(table: ComparisonTable, metrics: Sequence[str] | None = None) -> str:
    """What the command prints: at most 120 columns, long names shortened in the middle."""
    shown = headline(table, metrics)
    blocks = ["\n".join(wrapped(line) for line in map(one_line, about(table)))]
    for part in shown:
        lines = aligned([HEADERS, *(cells_of(row) for row in part.rows)])
        notes = [wrapped(one_line(note)) for note in sentences(part)]
        blocks.append("\n".join([title(part), *lines, *notes]))
    blocks.append("\n".join(["Cost per run (ratio to the baseline)", *aligned(cost_rows(table.cells))]))
    blocks.append(wrapped(LEGEND))
    others = [f"{part.task} {part.metric}" for part in table.tables if part not in shown]
    if others:
        blocks.append(wrapped(f"Further metrics: {', '.join(others)}."))
    return "\n\n".join(blocks) + "\n"


def as_markdown(table: ComparisonTable, metrics: Sequence[str] | None = None) -> str:
    """Sections with pipe tables."""
    blocks = ["\n".join(f"- {markdown(line)}" for line in about(table))]
    for part in headline(table, metrics):
        rows = _pipes([HEADERS, *(cells_of(row) for row in part.rows)])
        blocks += [f"## {markdown(title(part))}", rows, "\n".join(f"- {markdown(line)}" for line in sentences(part))]
    blocks += ["## Cost per run", _pipes(cost_rows(table.cells)), markdown(LEGEND)]
    return "\n\n".join(blocks) + "\n"


def _pipes(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(markdown(text) for text in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]])


def as_latex(table: ComparisonTable, metrics: Sequence[str] | None = None) -> str:
    """One `table` per metric; needs `\\usepackage{booktabs}`."""
    return "\n".join(_latex_table(part) for part in headline(table, metrics))


def _latex_table(part: MetricTable) -> str:
    header, *body = [_latex_row(row) for row in (HEADERS, *(cells_of(row) for row in part.rows))]
    caption = latex(" ".join([f"{title(part)}.", *sentences(part)]))
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * (len(HEADERS) - 1)}}}", r"\toprule", header,
        r"\midrule", *body, r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", "",
    ])  # fmt: skip


def _latex_row(texts: Sequence[str]) -> str:
    """A row; `[` or `*` at its start would be an argument of the line break before it."""
    row = " & ".join(map(latex, texts)) + r" \\"
    return "{}" + row if row[0] in "[*" else row


GAIN_FIELDS = (
    *("against", "value", "percent", "over", "pairs", "standard_error", "df", "low", "high", "p", "p_holm"),
    *("above_zero", "detectable", "seeds_needed"),
)


def as_csv(table: ComparisonTable) -> str:
    """Every metric, one row per cell, numbers in full; empty where there is none."""
    costs = list(dict.fromkeys(name for cell in table.cells for name in cell.cost))
    header = ["task", "metric", "cell", "seeds", "prompts", "mean", "deviation", "before"]
    header += [f"gain_{name}" for name in GAIN_FIELDS] + ["deviation_ratio", "deviation_p", "deviation_power"]
    header += [f"{name}{suffix}" for name in costs for suffix in ("", "_ratio")]
    cells, out = {cell.name: cell for cell in table.cells}, io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for part in table.tables:
        for row in part.rows:
            writer.writerow([_csv_value(value) for value in _csv_row(part, row, cells[row.cell], costs)])
    return out.getvalue()


def _csv_row(part: MetricTable, row: ComparisonRow, cell: CellSummary, costs: Sequence[str]) -> list[object]:
    test = row.stability
    gain = [getattr(row.gain, name) if row.gain else None for name in GAIN_FIELDS]
    spread = [test.ratio, test.p, test.power] if test else [None] * 3
    cost = [
        x
        for name in costs
        for x in ((cell.cost[name].mean, cell.cost[name].ratio) if name in cell.cost else (None,) * 2)
    ]
    start = [part.task, part.metric, row.cell, len(row.by_seed), part.prompts, row.mean, row.deviation, row.before]
    return [*start, *gain, *spread, *cost]


def _csv_value(value: object) -> object:
    """Text that a spreadsheet would read as a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def title(part: MetricTable) -> str:
    """`places, sampled/f1 (32 prompts, before training 0.416)`."""
    prompts = [f"{part.prompts} prompts"] if part.prompts else []
    before = {row.before for row in part.rows if row.before is not None}
    start = [f"before training {number(before.pop())}"] if len(before) == 1 else []
    words = ", ".join(prompts + start)
    return one_line(f"{part.task}, {part.metric}" + (f" ({words})" if words else ""))


def sentences(part: MetricTable) -> list[str]:
    """Verdicts of the cells, then notes."""
    verdicts = (verdict(row, part) for row in part.rows)
    return [
        text[:1].upper() + text[1:] if text.startswith("no ") else text for text in verdicts if text
    ] + metric_notes(part)


def cells_of(row: ComparisonRow) -> tuple[str, ...]:
    """The texts of one row under `HEADERS`."""
    deviation = "" if row.deviation is None else f" ± {number(row.deviation)}"
    return row.cell, str(len(row.by_seed)), number(row.mean) + deviation, *_gain_cells(row.gain)


def _gain_cells(gain: Gain | None) -> tuple[str, ...]:
    if gain is None:
        return (DASH,) * len(GAIN_HEADERS)
    percent = DASH if gain.percent is None else f"{gain.percent:+.1f}"
    if gain.low is None or gain.high is None:
        return f"{gain.value:+.3f}", percent, *(DASH,) * 5
    return (
        f"{gain.value:+.3f}",
        percent,
        f"[{gain.low:+.3f}, {gain.high:+.3f}]",
        DASH if gain.p_holm is None else p_value(gain.p_holm),
        DASH if gain.above_zero is None else probability(gain.above_zero),
        DASH if gain.detectable is None else number(gain.detectable),
        DASH if gain.seeds_needed is None else str(gain.seeds_needed),
    )


def probability(value: float) -> str:
    """Whole per cent, never all or nothing.

    >>> probability(0.973), probability(0.9997), probability(0.001)
    ('97%', '>99%', '<1%')
    """
    return ">99%" if value > 0.99 else "<1%" if value < 0.01 else f"{value:.0%}"


def cost_rows(cells: Sequence[CellSummary]) -> list[tuple[str, ...]]:
    """Header and a row per cell: means with ratios, an asterisk where the cost differs."""
    names = [name for name in COSTS if any(name in cell.cost for cell in cells)]
    return [("cell", *names), *((cell.name, *(_cost(cell, name) for name in names)) for cell in cells)]


def _cost(cell: CellSummary, name: str) -> str:
    if name not in cell.cost:
        return DASH
    cost = cell.cost[name]
    ratio = "" if cost.ratio is None else f" ({cost.ratio:.2f}{'*' if cost.differs else ''})"
    return f"{cost.mean:,.0f}{ratio}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of at most `WIDTH` columns: the first column to the left, the others to the right."""
    rows = [[one_line(text) for text in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = max(8, min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    lines = [
        [
            middle_cut(row[0], widths[0]).ljust(widths[0]),
            *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True)),
        ]
        for row in rows
    ]
    return ["  ".join(line).rstrip() for line in lines]


def wrapped(text: str) -> str:
    """Lines of at most `WIDTH` columns."""
    return "\n  ".join(textwrap.wrap(text, WIDTH - 2))


def one_line(text: str) -> str:
    """The text without control characters, white space as single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def markdown(text: str) -> str:
    """Escaped for Markdown, in a table too.

    >>> print(markdown("a_b|<i>`*[x](y)"))
    a\\_b\\|\\<i\\>\\`\\*\\[x\\](y)
    """
    return re.sub(r"([\\`*_\[\]<>|#&~$!])", r"\\\1", one_line(text))


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "–": "--", "…": r"\ldots{}",
    **{c: f"\\{c}" for c in "$&#%_"},
}  # fmt: skip


def latex(text: str) -> str:
    """Escaped for LaTeX.

    >>> print(latex("50% of a_b & {c}"))
    50\\% of a\\_b \\& \\{c\\}
    """
    return "".join(LATEX.get(c, c) for c in one_line(text))
