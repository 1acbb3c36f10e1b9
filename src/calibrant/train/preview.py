"""`calibrant train --dry-run`: what a run would do; nothing is trained and nothing is written."""

from collections.abc import Iterator

import yaml

from calibrant.tasks.examples import right_answers
from calibrant.tasks.prompts import prompt_text, prompt_tokens
from calibrant.train.estimate import estimate_step
from calibrant.train.prepare import prepare
from calibrant.train.runs import config_of
from calibrant.train.settings import TrainSettings

EXAMPLES, MEASURED = 3, 200  # prompts that are shown, and whose lengths are counted


def preview(settings: TrainSettings) -> Iterator[str]:
    """Lines: three prompts as the policy reads them, with right answers and rewards, the options, and an estimate."""
    prepared = prepare(settings)
    task, tokenizer, rows = prepared.task, prepared.tokenizer, prepared.training
    for number, (row, right) in enumerate(
        zip(rows[:EXAMPLES], right_answers(task, rows[:EXAMPLES], tokenizer), strict=True), 1
    ):
        yield f"== prompt {number}: '{row['prompt_id']}', {prompt_tokens(row, tokenizer)} tokens"
        yield from (prompt_text(row, tokenizer), f"== end of prompt {number}", *right, "")
    lengths = sorted(prompt_tokens(row, tokenizer) for row in rows[:MEASURED])
    yield f"prompts:        {len(rows)} for training, {len(prepared.evaluation)} for each evaluation"
    middle = lengths[len(lengths) // 2]
    yield f"their lengths:  {lengths[0]} to {lengths[-1]} tokens, median {middle} (the first {len(lengths)})"
    low, high = task.reward_range
    yield f"reward:         {task.reward_name}; signals read the range [{low:g}, {high:g}]"
    yield ""
    options = config_of(settings)["settings"]
    yield yaml.safe_dump({"options": options}, sort_keys=False, allow_unicode=True, width=100)
    yield "estimate, from a few tokens and one pass of the model; embeddings, rewards and saving are not counted:"
    yield from estimate_step(prepared)
