"""Groups of rollouts, sampled from the policy or read from a rollout file."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.errors import CalibrantError
from calibrant.files import JsonObject
from calibrant.policy import SharedPrefix
from calibrant.policy.generation import Completion, Sampling, completions, encoded, sample_group
from calibrant.policy.prompts import Tokens
from calibrant.rollouts import group_keys, read_rollouts
from calibrant.tasks.base import Row, Task
from calibrant.tasks.judged import judged_rows
from calibrant.tasks.prompts import prompt_for, prompt_tokens


class Group(NamedTuple):
    """The rollouts of one prompt: rows of a rollout file, their tokens, and what was read of those while sampling."""

    rows: list[JsonObject]
    tokens: Tokens
    read: SharedPrefix | None = None


def group_seed(seed: int, index: int) -> int:
    """The sampling seed of one group, independent of other groups.

    >>> group_seed(0, 1) == group_seed(0, 1), group_seed(0, 1) == group_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


def sampled_group(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    row: Row,
    sampling: Sampling,
) -> Group:
    """Samples a group of answers to one question, with rewards and verdicts of the task."""
    group = sample_group(model, tokenizer, prompt_for(row, tokenizer), sampling)
    rows = _group_rows(tokenizer, task, row, completions(tokenizer, group))
    read = None if group.states is None else SharedPrefix(group.logps, group.entropies, group.states)
    return Group(rows, group.tokens, read)


def written_group(
    tokenizer: PreTrainedTokenizerBase, task: Task, row: Row, answers: Sequence[Completion], device: torch.device
) -> Group:
    """A group of answers that another engine sampled, with rewards and verdicts of the task."""
    prompt, mask = encoded(tokenizer, [prompt_for(row, tokenizer)], device)
    ids = padded([answer.ids for answer in answers], tokenizer.pad_token_id or 0, device)
    tokens = Tokens(prompt.expand(len(answers), -1), mask.expand(len(answers), -1), *ids)
    return Group(_group_rows(tokenizer, task, row, answers), tokens)


def _group_rows(
    tokenizer: PreTrainedTokenizerBase, task: Task, row: Row, answers: Sequence[Completion]
) -> list[JsonObject]:
    """Rows of a rollout file: judged answers with their token ids."""
    rows = judged_rows(task, [row], [answers], tokenizer)
    for record, answer in zip(rows, answers, strict=True):
        record["completion_ids"] = answer.ids
    if "messages" in row:
        rows[0]["messages"] = json.dumps(row["messages"], ensure_ascii=False)  # for the chat template; once per group
    return rows


def groups_of_file(path: str) -> list[pd.DataFrame]:
    """The groups of a rollout file in order of appearance: rows with equal `prompt_id`, and `step` if it has one."""
    frame = read_rollouts(path)
    unasked = frame["prompt"].isna().to_numpy() if "prompt" in frame else np.ones(1, dtype=bool)
    if unasked.any():
        raise CalibrantError(
            f"'{path}' lacks prompts (column 'prompt', row {unasked.argmax() + 1}); the gradient of an answer needs "
            "its prompt, fill it in"
        )
    return [group for _, group in frame.groupby(group_keys(frame, path), sort=False)]


def given_group(frame: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, limit: int, device: torch.device) -> Group:
    """A group of a file with its tokens.

    Ids of the column `completion_ids` are used if they decode to the completion with this tokenizer. Otherwise the
    text is tokenised, and an end-of-sequence token follows unless `num_tokens` leaves no room for it. A prompt of
    more than `limit` tokens is refused.
    """
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    question = _question(rows)
    if (length := prompt_tokens(question, tokenizer)) > limit:
        raise CalibrantError(
            f"the prompt '{question['prompt_id']}' takes {length} tokens, more than {limit}; raise --max-prompt-length"
        )
    prompt, mask = encoded(tokenizer, [prompt_for(question, tokenizer)], device)
    ids = [_completion_ids(row, tokenizer) for row in rows]
    completion, completion_mask = padded(ids, tokenizer.pad_token_id or 0, device)
    return Group(rows, Tokens(prompt.expand(len(ids), -1), mask.expand(len(ids), -1), completion, completion_mask))


def padded(ids: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Rows of ids, padded on the right to at least one column, and their mask.

    >>> [x.tolist() for x in padded([[5, 6], [7]], 0)]
    [[[5, 6], [7, 0]], [[1, 1], [1, 0]]]
    """
    width = max([1, *map(len, ids)])
    filled = [[*row, *[pad] * (width - len(row))] for row in ids]
    masks = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
    return torch.tensor(filled, device=device), torch.tensor(masks, device=device)


def _question(rows: list[JsonObject]) -> Row:
    question: Row = {"prompt_id": str(rows[0]["prompt_id"]), "prompt": str(rows[0]["prompt"]), "references": []}
    messages = next((row["messages"] for row in rows if row.get("messages") is not None), None)
    if messages is not None:
        question["messages"] = _messages(messages, question["prompt_id"])
    return question


def _messages(value: object, prompt_id: str) -> list[dict[str, str]]:
    try:
        messages = json.loads(value) if isinstance(value, str) else list(value)  # type: ignore[call-overload]
        return [{"role": str(message["role"]), "content": str(message["content"])} for message in messages]
    except (TypeError, KeyError, ValueError):
        raise CalibrantError(
            f"the column 'messages' of the prompt '{prompt_id}' holds no conversation; write JSON, a list of role and "
            "content, or leave the column out"
        ) from None


def _completion_ids(row: JsonObject, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    text = str(row["completion"] or "")
    kept = _kept_ids(row.get("completion_ids"))
    if kept and max(kept) < len(tokenizer) and tokenizer.decode(kept, skip_special_tokens=True) == text:
        return kept
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = row.get("num_tokens") is not None and row["num_tokens"] <= len(ids)
    return ids if cut or tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def _kept_ids(value: Sequence[int] | str | None) -> list[int] | None:
    """Ids from a list, or from JSON text, as a Parquet file stores them; None for anything else."""
    try:
        ids = json.loads(value) if isinstance(value, str) else value
        return [int(x) for x in ids] if ids is not None and min(ids, default=-1) >= 0 else None
    except (TypeError, ValueError):
        return None


def frequent_answers(rows: Sequence[JsonObject], limit: int = 5) -> Iterator[JsonObject]:
    """The most frequent answers of a group, with their counts and the reward of the first occurrence."""
    answers = [str(row["answer"])[:200] for row in rows]
    for answer, count in Counter(answers).most_common(limit):
        reward = rows[answers.index(answer)]["reward"]
        yield {"answer": answer, "count": count, "reward": None if pd.isna(reward) else float(reward)}
