"""What was measured in a comparison: per cell, seed and prompt, a value of each metric of each evaluation task."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

Series = Mapping[str, Mapping[int, tuple[float, ...]]]
"""Cell -> seed -> values."""


@dataclass(frozen=True)
class Cell:
    """One method with its options, trained with several seeds."""

    name: str
    options: Mapping[str, object]  # those that set it apart from the other cells, method included
    seeds: tuple[int, ...]  # that finished
    failed: Mapping[int, str]  # seed -> reason, one sentence
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
    varied: Mapping[str, tuple[object, ...]]  # option -> its values, of `--vary`; empty without
    cells: tuple[Cell, ...]  # in the order in which they were asked for
    scores: tuple[Scores, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)
