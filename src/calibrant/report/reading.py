"""A run directory as data frames, the input of a report."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calibrant.errors import CalibrantError
from calibrant.files import JsonObject, json_object, read_json_lines, read_yaml
from calibrant.rollouts import COLUMNS, read_rollouts

NO_SPREAD = 1e-6  # largest difference of rewards that counts as none
HUGE = 1e100  # numbers of this size or more, as a diverged run writes them, count as missing
NUMBERS = ("reward", "weight", "advantage", "advantage_base", "cluster", "num_tokens", "rollout", "step")


@dataclass(frozen=True)
class RunData:
    """The content of a run directory, without the texts.

    `groups` has one row per group: file, group (position in the file), step, prompt_id, answers, unscorable,
    mean_reward, spread (unbiased standard deviation), uninformative, weight (mean), one column per score.
    """

    path: Path
    options: JsonObject  # the resolved options, flat
    versions: JsonObject  # by package
    metrics: pd.DataFrame  # one row per logged step; columns as in `metrics.jsonl`, NaN where a line lacks a key
    evaluation: dict[str, JsonObject]  # "before" and "after" as in `evaluation.json`; empty without one
    groups: pd.DataFrame
    weights: pd.DataFrame  # step and weight of every scorable rollout
    notes: list[str]  # sentences about files that could not be read

    @property
    def scores(self) -> list[str]:
        """The signals in the rollout files, by name."""
        return [name for name in self._extra() if not name.endswith("_weight")]

    @property
    def factors(self) -> list[str]:
        """The factors of the weight in the rollout files: score columns whose name ends in `_weight`."""
        return [name for name in self._extra() if name.endswith("_weight")]

    def _extra(self) -> list[str]:
        return sorted(name for name in self.groups if name not in GROUP_COLUMNS and self.groups[name].notna().any())

    def metric(self, name: str) -> pd.Series:
        """A metric by step, without the steps that lack it; empty where no step has it."""
        if name not in self.metrics:
            return pd.Series(dtype=float, name=name)
        return self.metrics.set_index("step", drop=False)[name].dropna()

    def logged(self, name: str, frame: pd.DataFrame, column: str) -> pd.Series:
        """A metric by step, or else the mean of a column of `groups` or `weights`."""
        values = self.metric(name)
        return values if len(values) or not len(frame) else frame.groupby("step")[column].mean()


GROUP_COLUMNS = (
    *("file", "group", "step", "prompt_id", "answers", "unscorable"),
    *("mean_reward", "spread", "uninformative", "weight"),
)


def load_run(run_dir: str | Path) -> RunData:
    """Reads a run directory: a missing file gives an empty field, a damaged one a note."""
    path = Path(run_dir)
    if not (path / "config.yaml").is_file():
        raise CalibrantError(
            f"'{path}' is not a run directory (no config.yaml); "
            "give the folder that `calibrant train` or `calibrant analyze` wrote"
        )
    config = read_yaml(path / "config.yaml")
    options, versions = config.get("settings"), config.get("versions")  # old files have the options beside the versions
    options = options if isinstance(options, dict) else config
    named = {"calibrant": config["calibrant_version"]} if "calibrant_version" in config else {}
    notes: list[str] = []
    groups, weights = _training_rollouts(path / "rollouts", notes)
    return RunData(
        path=path,
        options={str(k): v for k, v in options.items() if k not in ("command", "versions", "calibrant_version")},
        versions=named | (versions if isinstance(versions, dict) else {}),
        metrics=_metrics(path / "metrics.jsonl", notes),
        evaluation=_evaluation(path / "evaluation.json", notes),
        groups=groups,
        weights=weights,
        notes=notes,
    )


def finite(value: object) -> float:
    """A number below `HUGE` as float; NaN for everything else.

    >>> finite(2), finite("2"), finite(None), finite(float("inf"))
    (2.0, nan, nan, nan)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < HUGE else math.nan


def tidy(frame: pd.DataFrame, step: int) -> pd.DataFrame:
    """A rollout frame with every column that a report reads, numbers finite or NaN, and the group of each row.

    A group is a run of rows with one prompt; a rollout number that restarts begins a group, so that a prompt can
    occur twice in a step. `step` is that of rows without one.
    """
    frame = frame.reset_index(drop=True)
    if "reward" not in frame:
        frame["reward"] = frame["correct"]
    for name in {*NUMBERS, *score_columns(frame)}:
        numbers = pd.to_numeric(frame[name] if name in frame else pd.Series(math.nan, frame.index), errors="coerce")
        frame[name] = numbers.astype(float).where(numbers.astype(float).abs() < HUGE)
    frame["step"] = frame["step"].fillna(step)
    changed = frame["prompt_id"].ne(frame["prompt_id"].shift())
    restarted = frame["rollout"].le(frame["rollout"].shift())
    frame["group"] = (changed | restarted).cumsum() - 1
    return frame


def score_columns(frame: pd.DataFrame) -> list[str]:
    """The score columns of a rollout frame: numeric columns that are not part of the format."""
    own_columns = {*COLUMNS, *GROUP_COLUMNS}
    return [str(name) for name in frame if name not in own_columns and pd.api.types.is_numeric_dtype(frame[name])]


def group_table(frame: pd.DataFrame, file: str) -> pd.DataFrame:
    """One row per group of a tidy frame; see `RunData.groups`."""
    by = frame.groupby("group", sort=True)
    reward = by["reward"]
    columns = {
        "file": file,
        "step": by["step"].first(),
        "prompt_id": by["prompt_id"].first(),
        "answers": by.size(),
        "unscorable": by.size() - reward.count(),
        "mean_reward": reward.mean(),
        "spread": reward.std(),
        "uninformative": (~(reward.max() - reward.min() > NO_SPREAD)).astype(float),
        **{name: by[name].mean() for name in ("weight", *score_columns(frame))},
    }
    return pd.DataFrame(columns).reset_index()


def _training_rollouts(folder: Path, notes: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    tables, weights = [], []
    for file in sorted(folder.glob("step-*.parquet")):
        try:
            step = re.match(r"step-(\d+)", file.name)
            frame = tidy(read_rollouts(file), int(step[1]) if step else 0)
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
        rows.extend({key: finite(value) for key, value in row.items()} for row in read_json_lines(path))
    except ValueError:
        notes.append(f"'{path.name}' is damaged after {len(rows)} lines; the steps after them are left out.")
    frame = pd.DataFrame([row for row in rows if not math.isnan(row.get("step", math.nan))])
    if frame.empty:
        return pd.DataFrame(columns=["step"])
    return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


def _evaluation(path: Path, notes: list[str]) -> dict[str, JsonObject]:
    if not path.exists():
        return {}
    try:
        data = json_object(path.read_bytes())
    except OSError:
        data = None
    if data is None:
        notes.append(f"'{path.name}' is damaged; the evaluation is left out.")
        return {}
    return {key: value for key, value in data.items() if isinstance(value, dict)}
