"""A run directory as numbers: everything that a report says starts here."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from calibrant.errors import CalibrantError
from calibrant.files import read_json_lines, read_yaml
from calibrant.rollouts import COLUMNS, read_rollouts

NO_SPREAD = 1e-6
"""Rewards that differ by no more than this say nothing about which answer is better."""

HUGE = 1e100
"""Numbers from here on, as a diverged run writes them, are no numbers to a report."""

NUMBERS = ("reward", "weight", "advantage", "advantage_base", "cluster", "num_tokens", "rollout", "step")


@dataclass(frozen=True)
class RunData:
    """What a run directory holds, without the texts.

    Attributes:
        path: the run directory.
        options: the resolved options, flat.
        versions: package -> version.
        metrics: one row a logged step; columns as in `metrics.jsonl`, NaN where a line lacks a key.
        evaluation: `{"before": ..., "after": ...}` as in `evaluation.json`; empty without one.
        groups: one row a group: file, group (position in the file), step, prompt_id, answers, unscorable,
            mean_reward, spread (unbiased standard deviation), uninformative, weight (mean), a column a score.
        weights: step and weight of every scorable rollout.
        notes: what could not be read, in sentences.
    """

    path: Path
    options: dict[str, Any]
    versions: dict[str, Any]
    metrics: pd.DataFrame
    evaluation: dict[str, Any]
    groups: pd.DataFrame
    weights: pd.DataFrame
    notes: list[str]

    @property
    def scores(self) -> list[str]:
        """The signals in the rollout files, in order of name."""
        return [name for name in self._extra() if not name.endswith("_weight")]

    @property
    def factors(self) -> list[str]:
        """The parts of the weight in the rollout files: score columns whose name ends in `_weight`."""
        return [name for name in self._extra() if name.endswith("_weight")]

    def _extra(self) -> list[str]:
        return sorted(name for name in self.groups if name not in GROUP_COLUMNS and self.groups[name].notna().any())

    def metric(self, name: str) -> pd.Series:
        """A metric by step, without the steps that lack it; empty where no step has it."""
        if name not in self.metrics:
            return pd.Series(dtype=float, name=name)
        return self.metrics.set_index("step", drop=False)[name].dropna()


GROUP_COLUMNS = (
    *("file", "group", "step", "prompt_id", "answers", "unscorable"),
    *("mean_reward", "spread", "uninformative", "weight"),
)


def load_run(run_dir: str | Path) -> RunData:
    """Reads a run directory; whatever is missing in it is empty, whatever is broken is noted.

    Raises:
        CalibrantError: the directory is not one of a run, or its `config.yaml` cannot be read.
    """
    path = Path(run_dir)
    if not (path / "config.yaml").is_file():
        raise CalibrantError(
            f"'{path}' is not a run directory (no config.yaml); "
            "give the folder that `calibrant train` or `calibrant analyze` wrote"
        )
    config = read_yaml(path / "config.yaml")
    notes: list[str] = []
    groups, weights = _training_rollouts(path / "rollouts", notes)
    return RunData(
        path=path,
        options=options_of(config),
        versions=versions_of(config),
        metrics=_metrics(path / "metrics.jsonl", notes),
        evaluation=_evaluation(path / "evaluation.json", notes),
        groups=groups,
        weights=weights,
        notes=notes,
    )


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a configuration, whether they stand under `settings` or beside the versions."""
    settings = config.get("settings")
    options = settings if isinstance(settings, dict) else config
    return {str(k): v for k, v in options.items() if k not in ("command", "versions", "calibrant_version")}


def versions_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The versions of a configuration, calibrant's first."""
    versions = config.get("versions")
    named = {"calibrant": config["calibrant_version"]} if "calibrant_version" in config else {}
    return named | (dict(versions) if isinstance(versions, dict) else {})


def number(value: Any) -> float:
    """A finite number as float, NaN for everything else and for what no axis can hold.

    >>> number(2), number("2"), number(None), number(float("inf"))
    (2.0, nan, nan, nan)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < HUGE else math.nan


def tidy(frame: pd.DataFrame, step: int) -> pd.DataFrame:
    """A rollout frame with every column that the report reads, numbers finite or NaN, and its group numbers.

    A group is a run of rows of one prompt; a rollout number that starts again starts a group, so one prompt
    can stand twice in a step.

    Args:
        frame: as `read_rollouts` returns it.
        step: the step of rows that name none.
    """
    frame = frame.reset_index(drop=True)
    if "reward" not in frame:
        frame["reward"] = frame["correct"]
    for name in {*NUMBERS, *score_columns(frame)}:
        frame[name] = _numeric(frame[name]) if name in frame else math.nan
    frame["step"] = frame["step"].fillna(step)
    changed = frame["prompt_id"].ne(frame["prompt_id"].shift())
    restarted = frame["rollout"].le(frame["rollout"].shift())
    frame["group"] = (changed | restarted).cumsum() - 1
    return frame


def score_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of a rollout frame that hold scores: numbers that the format does not name itself."""
    known = {*COLUMNS, *GROUP_COLUMNS}
    return [str(name) for name in frame if name not in known and pd.api.types.is_numeric_dtype(frame[name])]


def group_table(frame: pd.DataFrame, file: str) -> pd.DataFrame:
    """One row a group of a tidy frame; see `RunData.groups`."""
    by = frame.groupby("group", sort=True)
    reward = by["reward"]
    extent = reward.max() - reward.min()
    table = pd.DataFrame(
        {
            "file": file,
            "step": by["step"].first(),
            "prompt_id": by["prompt_id"].first(),
            "answers": by.size(),
            "unscorable": by.size() - reward.count(),
            "mean_reward": reward.mean(),
            "spread": reward.std(),
            "uninformative": (~(extent > NO_SPREAD)).astype(float),
            "weight": by["weight"].mean(),
            **{name: by[name].mean() for name in score_columns(frame)},
        }
    )
    return table.reset_index()


def step_of(file: Path) -> int:
    """The step in the name of a rollout file, 0 where there is none.

    >>> step_of(Path("step-000012.parquet"))
    12
    """
    found = re.match(r"step-(\d+)", file.name)
    return int(found[1]) if found else 0


def _numeric(values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    return numbers.where(numbers.abs() < HUGE)


def _training_rollouts(folder: Path, notes: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    tables, weights = [], []
    for file in sorted(folder.glob("step-*.parquet")):
        try:
            frame = tidy(read_rollouts(file), step_of(file))
        except CalibrantError as error:
            notes.append(f"A rollout file was left out: {error}.")
            continue
        tables.append(group_table(frame, file.name))
        weights.append(frame.loc[frame["reward"].notna(), ["step", "weight"]].dropna())
    return _joined(tables, GROUP_COLUMNS), _joined(weights, ("step", "weight"))


def _joined(tables: Iterable[pd.DataFrame], columns: Iterable[str]) -> pd.DataFrame:
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))


def _metrics(path: Path, notes: list[str]) -> pd.DataFrame:
    rows: list[dict[str, float]] = []
    try:
        rows.extend(
            {key: number(value) for key, value in row.items()} for row in read_json_lines(path) if isinstance(row, dict)
        )
    except ValueError:
        notes.append(f"'{path.name}' is damaged after {len(rows)} lines; the steps behind them are left out.")
    frame = pd.DataFrame([row for row in rows if not math.isnan(row.get("step", math.nan))])
    if frame.empty:
        return pd.DataFrame(columns=["step"])
    return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


def _evaluation(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        notes.append(f"'{path.name}' is damaged; the evaluation is left out.")
        return {}
    return {k: v for k, v in data.items() if isinstance(v, dict)} if isinstance(data, dict) else {}
