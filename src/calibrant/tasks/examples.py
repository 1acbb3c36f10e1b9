"""Examples of a task's prompts, each with a right answer, its extraction and its reward."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from calibrant.policy.generation import Completion
from calibrant.tasks.base import Row, Task
from calibrant.tasks.files import Record
from calibrant.tasks.judged import judged_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 300  # characters of a context, at its beginning


def right_answers(
    task: Task, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase | None" = None
) -> list[list[str]]:
    """Per row, lines on its right answers: a completion that gives the first one, what is extracted, and the reward.

    Reward functions are called on these completions, and raise what they raise.
    """
    texts = [task.completion_of(row["references"][0]) if row["references"] else "" for row in rows]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] if tokenizer else [] for text in texts]
    completions = [[Completion(text, tokens, None)] for text, tokens in zip(texts, ids, strict=True)]
    judged = judged_rows(task, rows, completions, tokenizer)
    return [_lines(row, text, about) for row, text, about in zip(rows, texts, judged, strict=True)]


def _lines(row: Row, text: str, judged: Record) -> list[str]:
    if not row["references"]:
        return ["right answers: none in the data", f"reward of an empty completion: {_rewards(judged)}"]
    return [
        f"right answers: {' | '.join(row['references'])}",
        f"a completion:  {text!r}, extracted: {judged['answer']!r}",
        f"its reward:    {_rewards(judged)}",
    ]


def _rewards(judged: Record) -> str:
    several = {name: value for name, value in judged.items() if name.startswith("rewards/")}
    if not several:
        return _number(judged["reward"])
    parts = ", ".join(f"{name.removeprefix('rewards/')} {_number(value)}" for name, value in several.items())
    return f"{_number(judged['total_reward'])} ({parts})"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else "none (unscorable)"


def with_short_context(row: Row) -> str:
    """The plain prompt of a row with the beginning of its context alone."""
    context = row.get("context", "")
    short = f"{context[:SHOWN]} [... {len(context) - SHOWN} more characters]"
    return row["prompt"].replace(context, short, 1) if len(context) > SHOWN + 50 else row["prompt"]
