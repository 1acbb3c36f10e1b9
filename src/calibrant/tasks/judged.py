"""Completions as rows of a rollout file, judged by a task."""

from collections.abc import Sequence
from typing import Any

from calibrant.policy.generation import Completion
from calibrant.tasks.base import Row, Task


def judged_rows(task: Task, rows: Sequence[Row], completions: Sequence[Sequence[Completion]]) -> list[dict[str, Any]]:
    """Completions as rows of a rollout file, judged by the task in one batch; None where nothing can be said."""
    out: list[dict[str, Any]] = [
        {
            "prompt_id": row["prompt_id"],
            "prompt": row["prompt"],
            "references": row["references"],
            "rollout": i,
            "completion": found.text,
            "answer": task.extract(found.text),
            "logprob": found.logprob,
            "num_tokens": found.num_tokens,
        }
        for row, group in zip(rows, completions, strict=True)
        for i, found in enumerate(group)
    ]
    answers, references = [row["answer"] for row in out], [row["references"] for row in out]
    rewards, verdicts = task.reward_batch(answers, references), task.correct_batch(answers, references)
    return [row | {"reward": r, "correct": c} for row, r, c in zip(out, rewards, verdicts, strict=True)]
