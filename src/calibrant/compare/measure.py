"""What was measured in a comparison, read from its run directories and evaluations."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from math import nan
from pathlib import Path

import pyarrow.parquet as pq

from calibrant.compare.cells import Cell
from calibrant.compare.evaluations import RESULTS, Target, read_results
from calibrant.compare.folder import Folder
from calibrant.compare.plan import model_label, models
from calibrant.errors import CalibrantError, shortened
from calibrant.files import JsonObject, read_json_lines
from calibrant.statistics import measurements
from calibrant.statistics.measurements import Scores
from calibrant.train.runs import Run

log = logging.getLogger(__name__)
Values = dict[str, tuple[tuple[str, ...], tuple[float, ...]]]
"""Metric -> ids of prompts, and the value of each; without ids, one value for the whole set."""

CURVES = (
    *("reward", "reward_std", "loss", "kl", "entropy", "grad_norm", "learning_rate"),
    *("completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std", "group/uninformative"),
    *("group/weight/mean", "group/weight/std", "group/weight/min", "group/weight/max"),
)
"""Metrics of training that are drawn against the step."""


def measure_cell(cell: Cell, runs: Mapping[int, Run], left_out: Mapping[int, str]) -> measurements.CellMeasurements:
    """A cell with what its runs cost and how they went; `runs` and `left_out` are by seed."""
    logs = {seed: list(read_json_lines(run.metrics)) for seed, run in runs.items()}
    costs = {seed: _cost(logs[seed], run, cell.training.rollouts) for seed, run in runs.items()}
    curves = {
        name: {seed: tuple(_number(row.get(name)) for row in rows) for seed, rows in logs.items()}
        for name in CURVES
        if any(name in row for rows in logs.values() for row in rows)
    }
    cost = {name: {seed: by_name.get(name, 0.0) for seed, by_name in costs.items()} for name in _keys(costs.values())}
    return measurements.CellMeasurements(cell.name, cell.options, tuple(runs), dict(left_out), cost, curves)


def _cost(rows: Sequence[JsonObject], run: Run, rollouts: int) -> dict[str, float]:
    """Updates, sampled rollouts and seconds of a run, these also by part; `rollouts` are those of a group."""
    trained_on = sum(pq.read_metadata(file).num_rows for file in run.rollouts.glob("step-*.parquet"))
    replaced = rollouts * sum(row.get("batch/resampled", 0) for row in rows)
    cost = {"updates": float(len(rows)), "samples": float(trained_on + replaced)}
    for row in rows:
        for name, value in row.items():
            if name == "seconds" or name.startswith("seconds/"):
                cost[name] = cost.get(name, 0.0) + _number(value)
    return cost


def measure_target(
    target: Target, cells: Sequence[Cell], finished: Mapping[str, Sequence[int]], folder: Folder
) -> list[Scores]:
    """Every metric of an evaluation task; `finished` are the seeds of each cell.

    Raises CalibrantError where evaluations have different prompts.
    """
    trained = {
        (cell, seed): evaluation_values(folder.evaluation(target.name, cell, seed))
        for cell, seeds in finished.items()
        for seed in seeds
    }
    untrained = {model: folder.before(target.name, model_label(model)) for model in models(list(cells))}
    before = {model: evaluation_values(path) for model, path in untrained.items() if (path / RESULTS).exists()}
    every = {f"{cell}/seed-{seed}": values for (cell, seed), values in trained.items()} | before
    scores = []
    for metric in _keys(trained.values()):
        having = {name: values[metric] for name, values in every.items() if metric in values}
        prompts = _same_prompts(target.name, {name: ids for name, (ids, _) in having.items()})
        if lacking := sorted({cell for (cell, _), values in trained.items() if metric not in values}):
            log.warning("%s: the metric '%s' was not measured for %s", target.name, metric, ", ".join(lacking))
        by_cell: dict[str, dict[int, tuple[float, ...]]] = {}
        for (cell, seed), values in trained.items():
            if metric in values:
                by_cell.setdefault(cell, {})[seed] = values[metric][1]
        start = {model: values[metric][1] for model, values in before.items() if metric in values}
        scores.append(Scores(target.name, metric, prompts, by_cell, start))
    return scores


def _same_prompts(task: str, prompts: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    (first, ids), *others = prompts.items()
    for other, theirs in others:
        if theirs != ids:
            apart = sorted(set(ids) ^ set(theirs))
            raise CalibrantError(
                f"'{first}' and '{other}' were evaluated on different prompts of {task} ({shortened(apart)}); delete "
                "the folder of one of the two evaluations, and compare again"
            )
    return ids


def evaluation_values(folder: Path) -> Values:
    """Every metric of an evaluation: those per prompt, and those of the whole set."""
    rows = list(read_json_lines(folder / "prompts.jsonl"))
    ids = tuple(str(row["prompt_id"]) for row in rows)
    names = [name for name in _keys(rows) if name != "prompt_id"]
    values: Values = {name: (ids, tuple(_number(row.get(name)) for row in rows)) for name in names}
    for name, value in _of_whole_set(read_results(folder)):
        values.setdefault(name, ((), (value,)))
    return values


def _of_whole_set(results: JsonObject) -> Iterable[tuple[str, float]]:
    for part in ("greedy", "sampled", "calibration", "stated_calibration"):
        for name, figure in results.get(part, {}).items():
            yield f"{part}/{name}", _number(figure["mean"])
    for rule, by_size in results.get("selection", {}).items():
        for size, figure in by_size.items():
            yield f"selection/{rule}/{size}", _number(figure["mean"])


def _keys(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """The keys of some mappings, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else nan
