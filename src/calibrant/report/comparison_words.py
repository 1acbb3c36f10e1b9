"""What a comparison shows, in sentences: a verdict per cell, and what limits a table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from calibrant.report.formats import p_value
from calibrant.statistics.comparison_table import CellSummary, ComparisonRow, ComparisonTable, Gain, MetricTable
from calibrant.statistics.measurements import lower_is_better

LEVEL = 0.05

LEGEND = (
    "gain: difference to the baseline, with a 95% interval for new seeds and new prompts of the same kind; "
    "detectable: the gain that is shown with a probability of 80%; "
    "needed: seeds per cell that show the gain that was seen, with the same probability."
)


def number(value: float) -> str:
    """Three decimals, or one significant digit of what is smaller; never `-0.000`.

    >>> number(0.4142), number(-0.00004), number(0.0), number(12.0)
    ('0.414', '-4e-05', '0.000', '12.000')
    """
    return f"{value:.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.0e}"


def verdict(row: ComparisonRow, table: MetricTable) -> str:
    """One sentence on the gain of a cell; empty for a baseline."""
    gain = row.gain
    if gain is None:
        return ""
    if gain.p is None or gain.p_holm is None:
        by = f"differs from {gain.against} by {number(gain.value)}" if gain.value else f"equals {gain.against}"
        return f"{row.cell} {by}; {_no_interval(table, gain)}."
    if gain.p_holm < LEVEL:
        return _shown(row.cell, gain, lower_is_better(table.metric)) + _one_seed(gain)
    found = f"no difference between {row.cell} and {gain.against} is shown"
    if gain.p < LEVEL:
        found += f" after the correction for {counted(table.comparisons, 'comparison')}"
        found += f" ({p_text(gain.p)}, {p_text(gain.p_holm)} after Holm)"
    return (
        f"{found}: {_sizes(row, table)} a gain below {number(gain.detectable or 0.0)} is often missed.{_one_seed(gain)}"
    )


def _no_interval(table: MetricTable, gain: Gain) -> str:
    if table.prompts:
        return "the values have no spread from which an interval could be made"
    return "one seed and one value per run give no interval"


def _shown(cell: str, gain: Gain, lower: bool) -> str:
    """The sentence of a gain whose adjusted p-value is below the level, with positive numbers for what is said."""
    ends = sorted(abs(end) for end in (gain.low or 0.0, gain.high or 0.0))
    word = "better" if (gain.value > 0) != lower else "worse"
    interval = f"[{number(ends[0])}, {number(ends[1])}]"
    return f"{cell} is {word} than {gain.against} by {number(abs(gain.value))} {interval} ({_holm(gain)})."


def _holm(gain: Gain) -> str:
    return f"{p_text(gain.p_holm or 0.0)} after Holm"


def p_text(p: float) -> str:
    """`p = 0.040` or `p < 0.001`.

    >>> p_text(0.04), p_text(1e-9)
    ('p = 0.040', 'p < 0.001')
    """
    return f"p < {p_value(p)[1:]}" if p < 0.001 else f"p = {p_value(p)}"


def _sizes(row: ComparisonRow, table: MetricTable) -> str:
    """`with 3 seeds and 32 prompts`."""
    against = next(other for other in table.rows if row.gain and other.cell == row.gain.against)
    pairs = row.gain.pairs if row.gain else ()
    counts = [len(pairs)] if pairs else sorted({len(row.by_seed), len(against.by_seed)})
    seeds = counted(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} and {counts[1]} seeds"
    return f"with {seeds}" + (f" and {counted(table.prompts, 'prompt')}" if table.prompts else "")


def _one_seed(gain: Gain) -> str:
    return " This is over prompts alone: one seed says nothing about another." if gain.over == "prompts" else ""


def counted(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def metric_notes(table: MetricTable) -> list[str]:
    """Sentences about what limits one table."""
    notes = []
    if table.dropped:
        notes.append(f"{counted(table.dropped, 'prompt')} without a value in some run are left out of all rows.")
    if table.missing:
        notes.append(f"Not measured for {', '.join(table.missing)}.")
    if not table.prompts:
        notes.append("One value per run: intervals are for new seeds, not for new prompts.")
    if any(len(row.by_seed) == 2 for row in table.rows):
        notes.append(TWO_SEEDS)
    if names := [f"{row.cell} (seed {', '.join(map(str, row.collapsed))})" for row in table.rows if row.collapsed]:
        notes.append(COLLAPSED.format("; ".join(names)))
    if table.rows and not any(row.gain for row in table.rows):
        notes.append("No gains: there is no other cell with values to compare with.")
    return notes + _stability(table.rows)


TWO_SEEDS = "With two seeds the interval rests on one or two degrees of freedom; three seeds or more are advised."


COLLAPSED = (
    "Below half of the median over seeds or of the value before training: {}. Where runs collapse, intervals cover "
    "less than 95% (in simulations 86% to 95% with three seeds); count such runs."
)


def _stability(rows: Iterable[ComparisonRow]) -> list[str]:
    """A sentence on deviations over seeds."""
    tested = [(row, row.stability) for row in rows if row.stability and row.stability.p is not None]
    if not tested:
        return []
    different = [f"{row.cell} ({p_text(test.p or 0.0)})" for row, test in tested if (test.p or 0.0) < LEVEL]
    power = max(test.power or 0.0 for _, test in tested)
    start = f"Deviations over seeds that differ from the baseline's: {', '.join(different)}"
    if not different:
        start = "No deviation over seeds differs from the baseline's"
    return [f"{start} (Brown-Forsythe, uncorrected); twice the deviation is seen with a probability of {power:.0%}."]


def about(table: ComparisonTable) -> list[str]:
    """Sentences about settings, seeds, failures and cost of the whole comparison."""
    cells = table.cells
    seeds = sorted({len(cell.seeds) for cell in cells})
    many = counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    kind = "each cell with the settings of its paper" if table.settings == "recommended" else "all cells alike"
    lines = [
        f"{counted(len(cells), 'cell')}, {many} each; baseline {table.baseline}; {table.settings} settings: {kind}."
    ]
    lines += [f"{name} varies: {', '.join(map(str, values))}." for name, values in table.varied.items()]
    return lines + pairing(table) + [line for cell in cells for line in _about_cell(cell)]


def pairing(table: ComparisonTable) -> list[str]:
    """Whether runs of equal seeds are pairs, and which gains are not over all seeds."""
    over_seeds = any(row.gain and "seeds" in row.gain.over for part in table.tables for row in part.rows)
    if not table.pair_seeds:
        return ["Runs of equal seeds are not paired (--no-pair-seeds)."] if over_seeds else []
    lines = dict.fromkeys(line for part in table.tables for line in _pairs_lacking(part.rows))
    return ["Runs of equal seeds are compared as pairs.", *lines] if over_seeds or lines else []


def _pairs_lacking(rows: Sequence[ComparisonRow]) -> Iterator[str]:
    by_seed = {row.cell: row.by_seed for row in rows}
    for row in rows:
        if row.gain is None or len(row.gain.pairs) == len({*row.by_seed, *by_seed[row.gain.against]}):
            continue
        both, pairs = f"{row.cell} and {row.gain.against}", row.gain.pairs
        if pairs:
            yield f"{both} have the seeds {', '.join(map(str, pairs))} in common: the gain is over these alone."
        else:
            yield f"{both} have no seed in common: they are not compared as pairs."


def left_out(cell: str, seeds: Mapping[int, str]) -> list[str]:
    """A line per reason for which seeds of a cell are left out.

    >>> left_out("grpo", {0: "out of memory", 1: "not finished", 2: "not finished"})
    ['grpo without seed 0: out of memory', 'grpo without seeds 1, 2: not finished']
    """
    by_reason: dict[str, list[str]] = {}
    for seed, reason in seeds.items():
        by_reason.setdefault(reason, []).append(str(seed))
    return [
        f"{cell} without {'seeds' if len(some) > 1 else 'seed'} {', '.join(some)}: {reason}"
        for reason, some in by_reason.items()
    ]


def _about_cell(cell: CellSummary) -> list[str]:
    lines = left_out(cell.name, cell.left_out)
    costs = [f"{cell.cost[name].ratio:.2f} times the {name}" for name in cell.other_cost]
    return lines + ([f"{cell.name} had another cost than the baseline: {', '.join(costs)}."] if costs else [])
