"""What was measured in a comparison: per cell, seed and prompt, a value of each metric of each evaluation task."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

JsonObject = dict[str, Any]

Series = Mapping[str, Mapping[int, tuple[float, ...]]]
"""Cell -> seed -> values."""


LOWER_IS_BETTER = re.compile(r"(^|[/_])(brier|ece|calibration_error|perplexity|loss)([/_]|$)")
"""Metrics whose name has one of these parts are better when they are lower; all others when they are higher."""


def lower_is_better(metric: str) -> bool:
    """Whether a lower value of a metric is better.

    >>> lower_is_better("calibration/ece_equal_width_15"), lower_is_better("sampled/f1")
    (True, False)
    """
    return LOWER_IS_BETTER.search(metric.lower()) is not None


@dataclass(frozen=True)
class CellMeasurements:
    """One method with its options, trained with several seeds."""

    name: str
    options: Mapping[str, object]  # those that set it apart from the other cells, method included
    seeds: tuple[int, ...]  # that finished
    left_out: Mapping[int, str]  # seed that failed or is not finished -> reason, one sentence
    cost: Mapping[
        str, Mapping[int, float]
    ]  # `updates`, `samples`, `seconds`, `seconds/PART` -> seed -> sum over the run
    curves: Mapping[str, Mapping[int, tuple[float, ...]]]  # metric of training -> seed -> value per step


@dataclass(frozen=True)
class Scores:
    """Values of one metric on one evaluation task."""

    task: str
    metric: str  # as `evaluate` names it, e.g. `sampled/f1`
    prompts: tuple[str, ...]  # ids; empty: one value for the whole set, e.g. an AUC, and no bootstrap over prompts
    values: Series  # `[P]` per seed, mean over the answers of a prompt, or one value
    before: Mapping[str, tuple[float, ...]]  # model -> its values before training


@dataclass(frozen=True)
class Measurements:
    """All that the table and the page of a comparison are computed from; saved in `comparison.json`."""

    baseline: str  # name of a cell
    settings: str  # `shared` or `recommended`
    pair_seeds: bool  # whether runs of equal seeds are pairs
    varied: Mapping[str, tuple[object, ...]]  # option -> its values, of `--vary`; empty without
    cells: tuple[CellMeasurements, ...]  # in the order in which they were asked for
    scores: tuple[Scores, ...]

    def to_json(self) -> JsonObject:
        """Plain dictionaries and lists for JSON, a missing value (NaN) as None."""
        return _without_nan(asdict(self))

    @classmethod
    def from_json(cls, data: JsonObject) -> "Measurements":
        """The measurements that `to_json` wrote."""
        varied = {name: tuple(values) for name, values in data["varied"].items()}
        cells, scores = tuple(_cell(x) for x in data["cells"]), tuple(_scores(x) for x in data["scores"])
        return cls(data["baseline"], data["settings"], data["pair_seeds"], varied, cells, scores)


def by_seed(data: Mapping[str, Any] | Mapping[int, Any]) -> dict[int, Any]:
    """A mapping by seed as JSON holds it, with numbers as keys."""
    return {int(seed): value for seed, value in data.items()}


def _cell(data: JsonObject) -> CellMeasurements:
    cost = {name: by_seed(values) for name, values in data["cost"].items()}
    curves = {name: _rows(values) for name, values in data["curves"].items()}
    seeds, left_out = tuple(data["seeds"]), by_seed(data["left_out"])
    return CellMeasurements(data["name"], data["options"], seeds, left_out, cost, curves)


def _scores(data: JsonObject) -> Scores:
    values = {cell: _rows(seeds) for cell, seeds in data["values"].items()}
    before = {model: _with_nan(row) for model, row in data["before"].items()}
    return Scores(data["task"], data["metric"], tuple(data["prompts"]), values, before)


def _rows(data: JsonObject) -> dict[int, tuple[float, ...]]:
    return {seed: _with_nan(row) for seed, row in by_seed(data).items()}


def _with_nan(row: list[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in row)


def _without_nan(data: Any) -> Any:
    """The same with None for each number that is not finite."""
    if isinstance(data, dict):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
