"""How good a policy's answers are, and whether its confidence can be trusted; with intervals over prompts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.errors import CalibrantError
from calibrant.evaluate.confidence import calibration
from calibrant.policy.generation import generate
from calibrant.tasks.base import Pooled, Row, Task
from calibrant.tasks.judged import judged_rows
from calibrant.tasks.prompts import prompt_for

Table = dict[str, dict[str, float]]
Figure = Callable[[Any], float]

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
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Evaluates a policy on rows of a task.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        task: says how answers are read and judged.
        rows: N questions.
        samples: sampled answers a question.
        temperature: of sampling.
        max_completion_length: longest answer in tokens; the task's when None.
        seed: of sampling and of the bootstrap.
        progress: whether to show progress bars.

    Returns:
        The results, as `evaluation.json` holds them, and the sampled answers as rows of a rollout file.
    """
    prompts = [prompt_for(row, tokenizer) for row in rows]
    common = {"max_new_tokens": max_completion_length or task.max_completion_length, "seed": seed}
    greedy = generate(
        model, tokenizer, prompts, samples=1, temperature=None, progress="greedy" if progress else None, **common
    )
    sampled = generate(
        model, tokenizer, prompts, samples=samples, temperature=temperature,
        progress="sampled" if progress else None, **common,
    )  # fmt: skip
    answers = judged_rows(task, rows, sampled)
    results = {
        "task": task.name,
        "prompts": len(rows),
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "greedy": table(task, judged_rows(task, rows, greedy), seed=seed),
        "sampled": table(task, answers, seed=seed),
    }
    return results | calibration(pd.DataFrame(answers), task.key, seed=seed), answers


def table(task: Task, answers: Sequence[dict[str, Any]], *, seed: int = 0) -> Table:
    """Means of a task's metrics and of its accuracy over judged answers.

    Args:
        task: says how answers are measured.
        answers: rows as of `judged_rows`; those of one prompt are together.
        seed: of the bootstrap.

    Returns:
        name -> `{"mean", "low", "high"}`, a 95% percentile interval from resampling prompts with their answers.
        Answers of which correctness is not known are out of the accuracy.
    """
    means, sums = by_prompt(task, answers), _sums(task, answers)
    pooled = {name: interval(sums[name], each.figure, seed=seed) for name, each in task.pooled.items()}
    return {name: interval(means[name].dropna(), seed=seed) for name in means} | pooled


def by_prompt(task: Task, answers: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The mean of each metric, and the accuracy, of the answers to each prompt; one row a prompt."""
    columns = {name: _measured(metric, answers) for name, metric in task.metrics.items()}
    columns["accuracy"] = [np.nan if row["correct"] is None else float(row["correct"]) for row in answers]
    return pd.DataFrame(columns).groupby([row["prompt_id"] for row in answers], sort=False).mean()


def differences(
    task: Task, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], *, seed: int = 0
) -> Table:
    """What the second answers have more than the first, prompt by prompt: mean and 95% paired bootstrap interval."""
    change = (by_prompt(task, after) - by_prompt(task, before)).dropna(how="all")
    old, new = _sums(task, before), _sums(task, after)
    pooled = {
        name: interval(pd.concat([old[name], new[name]], axis=1, join="inner"), _more(each), seed=seed)
        for name, each in task.pooled.items()
    }
    return {name: interval(change[name].dropna(), seed=seed) for name in change} | pooled


def _more(metric: Pooled) -> Figure:
    """What a metric gains from the first half of a row of counts to the second."""
    return lambda counts: metric.figure(counts[len(counts) // 2 :]) - metric.figure(counts[: len(counts) // 2])


def _measured(measure: Callable[[str, Sequence[str]], Any], answers: Sequence[dict[str, Any]]) -> list[Any]:
    """A measure of each answer; equal answers to equal references are measured once."""
    pairs = [(row["answer"], tuple(row["references"])) for row in answers]
    known = {pair: measure(*pair) for pair in dict.fromkeys(pairs)}
    return [known[pair] for pair in pairs]


def _sums(task: Task, answers: Sequence[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """The counts of each pooled metric, summed over the answers to each prompt."""
    ids = [row["prompt_id"] for row in answers]
    frames = {name: pd.DataFrame(_measured(each.counts, answers)) for name, each in task.pooled.items()}
    return {name: frame.groupby(ids, sort=False).sum() for name, frame in frames.items()}


def evaluate_rollouts(frame: pd.DataFrame, task: Task, *, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Evaluates answers that exist already.

    Args:
        frame: as `calibrant.rollouts.read_rollouts` returns it, with `references`, or with `correct`.
        task: says how answers are read, judged and measured, where the file has no verdicts of its own.
        seed: of the bootstrap.

    Returns:
        The results, without a greedy part, and the judged rows.

    Raises:
        CalibrantError: nothing in the file says what is correct.
    """
    rows = [dict(row) for row in frame.astype(object).where(frame.notna(), None).to_dict("records")]
    for row in rows:
        row["answer"] = row.get("answer") if row.get("answer") is not None else task.extract(row["completion"])
    _judge_what_is_not(rows, task)
    metrics = task if all(row.get("references") is not None for row in rows) else replace(task, metrics={}, pooled={})
    count = frame["prompt_id"].nunique()
    results = {
        "task": task.name,
        "split": "given",
        "prompts": count,
        "samples": round(len(frame) / count),
        "seed": seed,
        "sampled": table(metrics, rows, seed=seed),
    }
    return results | calibration(pd.DataFrame(rows), task.key, seed=seed), rows


def _judge_what_is_not(rows: list[dict[str, Any]], task: Task) -> None:
    open_rows = [row for row in rows if row.get("correct") is None]
    known = [row for row in open_rows if row.get("references") is not None]
    if open_rows and not known and len(open_rows) == len(rows):
        raise CalibrantError("the rollouts have neither 'correct' nor 'references'; one of them says what is right")
    verdicts = task.correct_batch([row["answer"] for row in known], [list(row["references"]) for row in known])
    for row, right in zip(known, verdicts, strict=True):
        row["correct"] = right
    for row in open_rows:
        row.setdefault("correct", None)


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
