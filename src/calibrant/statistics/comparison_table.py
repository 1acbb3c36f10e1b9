"""The table of a comparison as a structure: per task and metric a row per cell; saved in `comparison.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from calibrant.statistics.measurements import JsonObject, by_seed


@dataclass(frozen=True)
class Cost:
    """What a cell cost per run."""

    mean: float  # over seeds
    ratio: float | None  # to the baseline's mean; None where that is 0 or unknown
    differs: bool  # ratio beyond `SAME_COST`


@dataclass(frozen=True)
class CellSummary:
    """One cell: what sets it apart, what finished, what it cost."""

    name: str
    options: Mapping[str, object]
    seeds: tuple[int, ...]  # that finished
    left_out: Mapping[int, str]  # seed -> reason
    cost: Mapping[str, Cost]  # as in `Cell.cost`

    @property
    def other_cost(self) -> tuple[str, ...]:
        """Names of the costs per run that differ from the baseline's, without the parts of a step."""
        return tuple(name for name, cost in self.cost.items() if cost.differs and "/" not in name)


@dataclass(frozen=True)
class Gain:
    """Mean of a cell minus that of the cell it is compared with, over pairs of equal seeds where they have any.

    None: cannot be computed from so few seeds.
    """

    against: str  # name of that cell
    value: float
    percent: float | None  # of that cell's mean
    over: str  # what the interval is over: "seeds and prompts", "seeds", "prompts" (one seed) or "" (no interval)
    pairs: tuple[int, ...]  # seeds that both cells have, and that the gain is over; empty: all seeds, not paired
    standard_error: float | None
    df: float | None
    low: float | None  # 95% interval
    high: float | None
    p: float | None  # two-sided, of no difference
    p_holm: float | None  # adjusted for the comparisons of this table
    above_zero: float | None  # probability that the gain is above 0, under a flat prior
    detectable: float | None  # smallest gain that is shown with 80% power by so many seeds and prompts
    seeds_needed: int | None  # per cell, to show the gain that was seen with 80% power; None: no number of seeds does


@dataclass(frozen=True)
class Stability:
    """Brown-Forsythe test of equal deviations over seeds, against the same cell as the gain."""

    ratio: float | None  # deviation of the cell over that of the other; None where that is 0
    p: float | None  # None with fewer than three seeds in either
    power: float | None  # of seeing one deviation twice the other with so many seeds


@dataclass(frozen=True)
class ComparisonRow:
    """One cell on one metric of one task."""

    cell: str
    by_seed: Mapping[int, float]  # seed -> mean over prompts
    mean: float
    deviation: float | None  # sample deviation over seeds (n - 1); None with one
    before: float | None  # before training
    collapsed: tuple[int, ...]  # seeds that ended below half of `before`, or of the median over seeds if that is higher
    gain: Gain | None  # None for a baseline
    stability: Stability | None


@dataclass(frozen=True)
class MetricTable:
    """One metric on one task. Its comparisons are the family of Holm's correction."""

    task: str
    metric: str
    prompts: int  # that count; 0: a metric without prompts
    dropped: int  # prompts without a value in some run, which are out of every row
    missing: tuple[str, ...]  # cells without this metric
    rows: tuple[ComparisonRow, ...]

    @property
    def comparisons(self) -> int:
        """Number of p-values that Holm's correction is for."""
        return sum(row.gain is not None and row.gain.p is not None for row in self.rows)


@dataclass(frozen=True)
class ComparisonTable:
    """Everything that is printed of a comparison."""

    baseline: str
    settings: str  # `shared` or `recommended`
    pair_seeds: bool  # whether gains are between pairs of equal seeds, where cells have the same ones
    varied: Mapping[str, tuple[object, ...]]
    cells: tuple[CellSummary, ...]
    tables: tuple[MetricTable, ...]

    def to_json(self) -> JsonObject:
        """Plain dictionaries and lists for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: JsonObject) -> "ComparisonTable":
        """The table that `to_json` wrote."""
        cells = tuple(_summary(cell) for cell in data["cells"])
        tables = tuple(_table(table) for table in data["tables"])
        varied = {name: tuple(values) for name, values in data["varied"].items()}
        return cls(data["baseline"], data["settings"], data["pair_seeds"], varied, cells, tables)


def _summary(data: JsonObject) -> CellSummary:
    cost = {name: Cost(**values) for name, values in data["cost"].items()}
    seeds, left_out = tuple(data["seeds"]), by_seed(data["left_out"])
    return CellSummary(**data | {"seeds": seeds, "left_out": left_out, "cost": cost})


def _table(data: JsonObject) -> MetricTable:
    rows = tuple(_row(row) for row in data["rows"])
    return MetricTable(**data | {"missing": tuple(data["missing"]), "rows": rows})


def _row(data: JsonObject) -> ComparisonRow:
    gain, stability = data["gain"], data["stability"]
    if gain:
        gain = Gain(**gain | {"pairs": tuple(gain["pairs"])})
    return ComparisonRow(
        **data
        | {
            "by_seed": by_seed(data["by_seed"]),
            "collapsed": tuple(data["collapsed"]),
            "gain": gain,
            "stability": Stability(**stability) if stability else None,
        }
    )
