"""Completions as rows of a rollout file, with rewards and verdicts of a task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from calibrant.policy.generation import Completion
from calibrant.tasks.base import Row, Task
from calibrant.tasks.files import Record
from calibrant.tasks.prompts import prompt_for
from calibrant.tasks.rewards import rewards_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def judged_rows(
    task: Task,
    rows: Sequence[Row],
    completions: Sequence[Sequence[Completion]],
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Record]:
    """One row per completion, judged in one batch; reward and verdict are None if unscorable.

    Reward functions see prompts and completions as turns if the tokenizer has a chat template, else as texts.
    """
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
    judged: dict[str, list[Any]] = {"reward": task.reward_batch(answers, references)} if task.rewards is None else {}
    if task.rewards is not None:
        turned = tokenizer is not None and bool(tokenizer.chat_template)
        asked = [row for row, group in zip(rows, completions, strict=True) for _ in group]
        judged = rewards_of(
            task.rewards,
            asked,
            [row["prompt"] if tokenizer is None else prompt_for(row, tokenizer) for row in asked],
            [[{"role": "assistant", "content": row["completion"]}] if turned else row["completion"] for row in result],
            [list(completion.ids) for group in completions for completion in group],
        )
    judged["correct"] = task.correct_batch(answers, references)
    return [row | {name: values[i] for name, values in judged.items()} for i, row in enumerate(result)]
