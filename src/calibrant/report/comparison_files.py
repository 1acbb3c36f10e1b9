"""The files of a comparison's directory that its page is drawn from, and the names that it shows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrant.errors import CalibrantError
from calibrant.files import json_object, write_json
from calibrant.report.confidence import ROWS as CALIBRATION
from calibrant.report.evaluations import LABELS, SAMPLINGS, inside
from calibrant.report.formats import plain
from calibrant.report.reading import finite
from calibrant.statistics.comparison_table import ComparisonTable, MetricTable
from calibrant.statistics.measurements import CellMeasurements, Measurements

FILE = "comparison.json"
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class ComparisonData:
    """A comparison's directory: what was measured, and where the evaluations lie."""

    path: Path
    measured: Measurements
    table: ComparisonTable
    beside: tuple[str, ...]  # names of published tables

    def evaluation(self, task: str, cell: str, seed: int) -> Path:
        """The folder with the evaluation of a trained model; an absent one if a name would leave the directory."""
        folder = self.path / "evaluations" / task / cell / f"seed-{seed}"
        return folder if folder.resolve().is_relative_to(self.path.resolve()) else self.path / "none"

    def curve(self, task: str, cell: str, seed: int) -> Points:
        """Coverage and precision of an evaluation; empty without them."""
        file = self.evaluation(task, cell, seed) / "evaluation.json"
        results = json_object(file.read_bytes()) if file.is_file() else None
        axes = [inside(results, "curves", "precision_coverage", axis) for axis in ("coverage", "precision")]
        x, y = ([finite(value) for value in axis] if isinstance(axis, list) else [] for axis in axes)
        return [(a, b) for a, b in zip(x, y, strict=False) if not math.isnan(a + b)]


def save_comparison(file: Path, measured: Measurements, table: ComparisonTable, beside: Sequence[str] = ()) -> Path:
    """Writes `comparison.json` and returns its path."""
    content = {"measurements": measured.to_json(), "table": table.to_json(), "beside": list(beside)}
    return write_json(file, content)


def load_comparison(directory: str | Path) -> ComparisonData:
    """Reads `comparison.json`; raises CalibrantError where there is none, or one that is damaged."""
    path = Path(directory)
    if not (path / FILE).is_file():
        raise CalibrantError(f"'{path}' has no {FILE}; run calibrant compare with --out {path}")
    content = json_object((path / FILE).read_bytes()) or {}
    try:
        measured, table = Measurements.from_json(content["measurements"]), ComparisonTable.from_json(content["table"])
        return ComparisonData(path, measured, table, tuple(content["beside"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CalibrantError(
            f"'{path / FILE}' is damaged, or of another version; run calibrant compare with --out {path} again, which "
            "writes it anew"
        ) from None


def metric_label(metric: str) -> str:
    """A metric in words.

    >>> metric_label("sampled/f1"), metric_label("selection/majority_vote/8"), metric_label("my/own")
    ('F1, sampled', 'majority vote of 8', 'my/own')
    """
    part, _, name = metric.partition("/")
    if part in SAMPLINGS:
        return f"{LABELS.get(name, name)}, {part}"
    if part == "selection":
        rule, _, size = name.partition("/")
        return f"{rule.replace('_', ' ')} of {size}"
    return CALIBRATION.get(name, name.replace("_", " ")) if part == "calibration" else metric


def metric_words(metric: str) -> str:
    """A metric within a sentence.

    >>> metric_words("sampled/f1"), metric_words("calibration/brier")
    ('sampled F1', 'Brier score')
    """
    part, _, name = metric.partition("/")
    return f"{part} {LABELS.get(name, name)}" if part in SAMPLINGS else metric_label(metric)


def is_main(metric: str) -> bool:
    """Whether a metric is one of the answers themselves, not of calibration or of a selection among them."""
    return metric.partition("/")[0] in SAMPLINGS


def main_tables(table: ComparisonTable) -> list[MetricTable]:
    """The tables of the answers' metrics: of each task in turn, sampled answers first, F1 before others."""
    tasks = list(dict.fromkeys(part.task for part in table.tables))
    mine = [part for part in table.tables if is_main(part.metric) and part.rows]
    return sorted(mine, key=lambda part: (tasks.index(part.task), main_order(part.metric)))


def main_order(metric: str) -> tuple[int, int, str]:
    """Sorts metrics: of sampled answers first, F1 before others."""
    sampling, _, name = metric.partition("/")
    names = list(LABELS)
    first = SAMPLINGS.index(sampling) if sampling in SAMPLINGS else len(SAMPLINGS)
    return first, names.index(name) if name in names else len(names), name


def series_label(cell: CellMeasurements, without: Iterable[str] = ()) -> str:
    """The options that set a cell apart, but for some.

    >>> cell = CellMeasurements("x", {"method": "gcpo_cd", "alpha": 0.3, "seed_": 1}, (), {}, {}, {})
    >>> series_label(cell, ["alpha"])
    'gcpo_cd, seed_=1'
    """
    left = {name: value for name, value in cell.options.items() if name not in without and name != "method"}
    words = [f"{name}={plain(value)}" for name, value in left.items()]
    return ", ".join([str(cell.options.get("method", cell.name)), *words])
