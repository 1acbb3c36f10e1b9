"""How good a policy's answers are: greedy and sampled, with intervals over prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.generation import generate_answers
from calibrant.tasks.base import Row, Task

Table = dict[str, dict[str, float]]


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
    prompts = [row["prompt"] for row in rows]
    length = max_completion_length or task.max_completion_length
    common = {"max_new_tokens": length, "seed": seed}
    greedy = generate_answers(
        model, tokenizer, prompts, samples=1, temperature=None, progress="greedy" if progress else None, **common
    )
    sampled = generate_answers(
        model, tokenizer, prompts, samples=samples, temperature=temperature,
        progress="sampled" if progress else None, **common,
    )  # fmt: skip
    results = {
        "task": task.name,
        "prompts": len(rows),
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "greedy": judge(task, rows, greedy, seed=seed),
        "sampled": judge(task, rows, sampled, seed=seed),
    }
    return results, sampled_rows(task, rows, sampled)


def judge(task: Task, rows: Sequence[Row], completions: Sequence[Sequence[str]], *, seed: int = 0) -> Table:
    """Means of a task's metrics and of its accuracy over all completions.

    Args:
        task: says how answers are read and judged.
        rows: N questions.
        completions: N lists of completions.
        seed: of the bootstrap.

    Returns:
        name -> `{"mean", "low", "high"}`, a 95% percentile interval from resampling prompts with their answers.
    """
    functions = {**task.metrics, "accuracy": lambda answer, references: float(task.correct(answer, references))}
    answers = [[task.extract(text) for text in texts] for texts in completions]
    return {
        name: interval(
            [np.mean([f(a, row["references"]) for a in group]) for row, group in zip(rows, answers, strict=True)],
            seed=seed,
        )
        for name, f in functions.items()
    }


def interval(values: Sequence[Any], *, seed: int = 0, resamples: int = 2000) -> dict[str, float]:
    """Mean and 95% percentile bootstrap interval of per-prompt values (a cluster bootstrap over prompts).

    >>> interval([0.5, 0.5, 0.5])
    {'mean': 0.5, 'low': 0.5, 'high': 0.5}
    """
    x = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    low, high = np.quantile(x[draws].mean(axis=1), [0.025, 0.975])
    return {"mean": float(x.mean()), "low": float(low), "high": float(high)}


def sampled_rows(task: Task, rows: Sequence[Row], completions: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Completions as rows of a rollout file, judged by the task."""
    out = []
    for row, texts in zip(rows, completions, strict=True):
        for i, text in enumerate(texts):
            answer = task.extract(text)
            out.append(
                {
                    **row,
                    "rollout": i,
                    "completion": text,
                    "answer": answer,
                    "reward": task.reward(answer, row["references"]),
                    "correct": task.correct(answer, row["references"]),
                }
            )
    return out
