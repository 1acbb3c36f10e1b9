"""Completions as rows of a rollout file, with rewards and verdicts of a task."""

from collections.abc import Sequence

from calibrant.policy.generation import Completion
from calibrant.tasks.base import Row, Task
from calibrant.tasks.files import Record


def judged_rows(task: Task, rows: Sequence[Row], completions: Sequence[Sequence[Completion]]) -> list[Record]:
    """One row per completion, judged in one batch; reward and verdict are None if unscorable."""
    result: list[Record] = [
        {
            "prompt_id": row["prompt_id"],
            "prompt": row["prompt"],
            "references": row["references"],
            "rollout": i,
            "completion": completion.text,
            "answer": task.extract(completion.text),
            "logprob": completion.logprob,
            "num_tokens": len(completion.ids),
            "token_entropy": completion.token_entropy,
        }
        for row, group in zip(rows, completions, strict=True)
        for i, completion in enumerate(group)
    ]
    answers, references = [row["answer"] for row in result], [row["references"] for row in result]
    rewards, verdicts = task.reward_batch(answers, references), task.correct_batch(answers, references)
    return [
        row | {"reward": reward, "correct": correct}
        for row, reward, correct in zip(result, rewards, verdicts, strict=True)
    ]
