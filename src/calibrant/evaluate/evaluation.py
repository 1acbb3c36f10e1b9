"""Metrics and accuracy of a policy's answers and the calibration of its confidence, with intervals over prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.errors import CalibrantError
from calibrant.evaluate.confidence import calibration
from calibrant.files import JsonObject
from calibrant.policy.generation import PromptAnswers, Sampling, generate
from calibrant.rollouts import group_keys
from calibrant.tasks.base import Pooled, Row, Task
from calibrant.tasks.files import Record
from calibrant.tasks.judged import judged_rows
from calibrant.tasks.prompts import prompt_for

Table = dict[str, dict[str, float]]  # name -> `mean`, `low` and `high`
Figure = Callable[[Sequence[float]], float]

RESAMPLES, POOLED_RESAMPLES = 2000, 1000


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[Row],
    *,
    samples: int = 16,
    temperature: float = 0.9,
    max_completion_length: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[JsonObject, list[Record]]:
    """Evaluates a policy on rows of a task: one greedy answer and `samples` sampled answers per prompt.

    `seed` is that of sampling and of the bootstrap. Returns the content of `evaluation.json`, and the sampled answers
    as rows of a rollout file.
    """
    sampling = Sampling(samples, temperature, max_completion_length or task.max_completion_length, seed, greedy=True)
    prompts = [prompt_for(row, tokenizer) for row in rows]
    answers = generate(model, tokenizer, prompts, sampling, progress=progress)
    results, answered = evaluate_answers(task, rows, answers, sampling, tokenizer)
    return results, answered["sampled"]


def evaluate_answers(
    task: Task,
    rows: Sequence[Row],
    answers: Sequence[PromptAnswers],
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[JsonObject, dict[str, list[Record]]]:
    """As `evaluate`, from the answers to each row of the task; reward functions see them as the tokenizer's turns.

    Returns the content of `evaluation.json`, and the judged answers, `greedy` and `sampled`.
    """
    greedy = judged_rows(task, rows, [group.greedy for group in answers], tokenizer)
    sampled = judged_rows(task, rows, [group.sampled for group in answers], tokenizer)
    about = {"task": task.name, "prompts": len(rows), "samples": sampling.samples}
    about |= {"temperature": sampling.temperature, "seed": sampling.seed}
    tables = {"greedy": table(task, greedy, seed=sampling.seed), "sampled": table(task, sampled, seed=sampling.seed)}
    results = about | tables | calibration(pd.DataFrame(sampled), task.key, seed=sampling.seed)
    return results, {"greedy": greedy, "sampled": sampled}


def table(task: Task, answers: Sequence[Record], *, seed: int = 0) -> Table:
    """Means of a task's metrics and of the accuracy over judged answers, with 95% intervals over prompts.

    Answers of unknown correctness are excluded from the accuracy.
    """
    means, sums = by_prompt(task, answers), _sums(task, answers)
    pooled = {name: interval(sums[name], metric.figure, seed=seed) for name, metric in task.pooled.items()}
    return {name: interval(means[name].dropna(), seed=seed) for name in means} | pooled


def by_prompt(task: Task, answers: Sequence[Record]) -> pd.DataFrame:
    """The mean of each metric, the accuracy and the rewards of the answers to each prompt; one row per prompt."""
    columns = {name: _measured(metric, answers) for name, metric in task.metrics.items()}
    if task.kind != "chat":
        columns["accuracy"] = _numbers("correct", answers)
    columns |= {name: _numbers(name, answers) for name in answers[0] if name.startswith("rewards/")}
    return pd.DataFrame(columns).groupby([row["prompt_id"] for row in answers], sort=False).mean()


def prompt_rows(task: Task, answered: Mapping[str, Sequence[Record]]) -> list[Record]:
    """One row per prompt: its `prompt_id`, and `DECODING/METRIC`, the means over its answers; None where unknown."""
    frames = [by_prompt(task, answers).add_prefix(f"{decoding}/") for decoding, answers in answered.items()]
    table = pd.concat(frames, axis=1).astype(object)
    rows = table.where(table.notna(), None).to_dict("index")
    return [{"prompt_id": prompt, **row} for prompt, row in rows.items()]


def _numbers(column: str, answers: Sequence[Record]) -> list[object]:
    return [np.nan if row[column] is None else float(row[column]) for row in answers]


def differences(task: Task, before: Sequence[Record], after: Sequence[Record], *, seed: int = 0) -> Table:
    """The metrics of the second answers minus those of the first, with 95% intervals paired by prompt."""
    change = (by_prompt(task, after) - by_prompt(task, before)).dropna(how="all")
    old, new = _sums(task, before), _sums(task, after)
    pooled = {
        name: interval(pd.concat([old[name], new[name]], axis=1, join="inner"), _gain(metric), seed=seed)
        for name, metric in task.pooled.items()
    }
    return {name: interval(change[name].dropna(), seed=seed) for name in change} | pooled


def _gain(metric: Pooled) -> Figure:
    """The metric of the second half of a row of counts minus that of the first half."""
    return lambda counts: metric.figure(counts[len(counts) // 2 :]) - metric.figure(counts[: len(counts) // 2])


def _measured(measure: Callable[[str, Sequence[str]], object], answers: Sequence[Record]) -> list[object]:
    """A measure of each answer; equal answers to equal references are measured once."""
    pairs = [(row["answer"], tuple(row["references"])) for row in answers]
    values = {pair: measure(*pair) for pair in dict.fromkeys(pairs)}
    return [values[pair] for pair in pairs]


def _sums(task: Task, answers: Sequence[Record]) -> dict[str, pd.DataFrame]:
    """The counts of each pooled metric, summed over the answers to each prompt."""
    ids = [row["prompt_id"] for row in answers]
    frames = {name: pd.DataFrame(_measured(metric.counts, answers)) for name, metric in task.pooled.items()}
    return {name: frame.groupby(ids, sort=False).sum() for name, frame in frames.items()}


def evaluate_rollouts(
    frame: pd.DataFrame, task: Task, *, seed: int = 0, path: str | Path | None = None
) -> tuple[JsonObject, list[Record]]:
    """Evaluates existing answers: the results, without a greedy part, and the judged rows.

    `frame` is read by `read_rollouts` from `path`, with `references` or `correct`; the latter precedes.
    """
    group_keys(frame, path)
    rows = [dict(row) for row in frame.astype(object).where(frame.notna(), None).to_dict("records")]
    if all(row.get("correct") is None and row.get("references") is None for row in rows):
        which = f"'{path}' has" if path else "the rollouts have"
        raise CalibrantError(f"{which} no value in references or correct; fill one of them in")
    for row in rows:
        row["answer"] = row.get("answer") if row.get("answer") is not None else task.extract(row["completion"])
    _fill_missing_verdicts(rows, task)
    metrics = measured_task(task, rows)
    count = frame["prompt_id"].nunique()
    about = {"task": task.name, "split": "given", "prompts": count, "samples": round(len(frame) / count), "seed": seed}
    sampled = {"sampled": table(metrics, rows, seed=seed)}
    return about | sampled | calibration(pd.DataFrame(rows), task.key, seed=seed), rows


def measured_task(task: Task, rows: Sequence[Record]) -> Task:
    """The task without the metrics that need references, unless all answers have them."""
    return task if all(row.get("references") is not None for row in rows) else replace(task, metrics={}, pooled={})


def _fill_missing_verdicts(rows: list[Record], task: Task) -> None:
    unjudged = [row for row in rows if row.setdefault("correct", None) is None and row.get("references") is not None]
    verdicts = task.correct_batch([row["answer"] for row in unjudged], [list(row["references"]) for row in unjudged])
    for row, verdict in zip(unjudged, verdicts, strict=True):
        row["correct"] = verdict


def interval(
    values: Sequence[float] | pd.Series | pd.DataFrame, figure: Figure | None = None, *, seed: int = 0
) -> dict[str, float]:
    """Mean of per-prompt values, or a figure of their sums, with a 95% percentile interval from resampling prompts.

    >>> interval([0.5, 0.5, 0.5])
    {'mean': 0.5, 'low': 0.5, 'high': 0.5}
    """
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    resamples = RESAMPLES if figure is None else POOLED_RESAMPLES
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    if figure is None:
        value, replicates = x.mean(), x[draws].mean(axis=1)
    else:
        times = np.stack([np.bincount(draw, minlength=len(x)) for draw in draws])
        value, replicates = figure(x.sum(0)), np.asarray([figure(total) for total in times @ x])
    low, high = np.quantile(replicates, [0.025, 0.975])
    return {"mean": float(value), "low": float(low), "high": float(high)}
