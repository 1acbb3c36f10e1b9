"""Where groups come from: sampled from the policy, or read from a rollout file."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from calibrant.errors import CalibrantError
from calibrant.policy.generation import Completion, Tokens, encoded, sample_group
from calibrant.rollouts import group_keys, read_rollouts
from calibrant.tasks.base import Row, Task
from calibrant.tasks.judged import judged_rows
from calibrant.tasks.prompts import prompt_for, prompt_tokens


class Group(NamedTuple):
    """The rollouts of one prompt: rows of a rollout file, and their tokens."""

    rows: list[dict[str, Any]]
    tokens: Tokens


def group_seed(seed: int, index: int) -> int:
    """The seed of sampling of one group, which depends on no other group.

    >>> group_seed(0, 1) == group_seed(0, 1), group_seed(0, 1) == group_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


def sampled_group(
    model: Any, tokenizer: Any, task: Task, row: Row, *, samples: int, temperature: float, length: int, seed: int
) -> Group:
    """Samples and judges the answers to one question.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        task: reads and judges the answers.
        row: the question.
        samples: G.
        temperature: of sampling.
        length: longest answer in tokens.
        seed: of sampling.
    """
    prompt = prompt_for(row, tokenizer)
    tokens = sample_group(
        model, tokenizer, prompt, samples=samples, temperature=temperature, max_new_tokens=length, seed=seed
    )
    texts = tokenizer.batch_decode(tokens.completion_ids, skip_special_tokens=True)
    counts = tokens.completion_mask.sum(-1).tolist()
    answers = [Completion(text, count, None) for text, count in zip(texts, counts, strict=True)]
    rows = judged_rows(task, [row], [answers])
    for found, ids, count in zip(rows, tokens.completion_ids.tolist(), counts, strict=True):
        found["completion_ids"] = ids[:count]
    if "messages" in row:
        rows[0]["messages"] = json.dumps(row["messages"], ensure_ascii=False)  # for a chat template; once a group
    return Group(rows, tokens)


def groups_of_file(path: str) -> list[pd.DataFrame]:
    """The groups of a rollout file in order of appearance: rows with one `prompt_id`, and `step` where there are steps.

    Raises:
        CalibrantError: it is no rollout file, holds no rollout, or lacks the prompts.
    """
    frame = read_rollouts(path)
    unasked = frame["prompt"].isna().to_numpy() if "prompt" in frame else np.ones(1, dtype=bool)
    if unasked.any():
        raise CalibrantError(
            f"'{path}' lacks prompts (column 'prompt', row {unasked.argmax() + 1}); the gradient of an answer needs "
            "its prompt, fill it in"
        )
    return [group for _, group in frame.groupby(group_keys(frame, path), sort=False)]


def given_group(frame: pd.DataFrame, tokenizer: Any, limit: int, device: torch.device) -> Group:
    """A group of a file with the tokens of its texts.

    Ids of the column `completion_ids` are taken where they spell the completion with this tokenizer. Otherwise the
    text is split anew, and the token that ends a text follows unless `num_tokens` says that there was none (c).

    Args:
        frame: rows of one prompt.
        tokenizer: of the model.
        limit: the most tokens of a prompt.
        device: of the model.

    Raises:
        CalibrantError: the prompt is too long.
    """
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    question = _question(rows)
    if (length := prompt_tokens(question, tokenizer)) > limit:
        raise CalibrantError(
            f"the prompt '{question['prompt_id']}' takes {length} tokens, more than {limit}; raise --max-prompt-length"
        )
    prompt, mask = encoded(tokenizer, [prompt_for(question, tokenizer)], device)
    ids = [_completion_ids(row, tokenizer) for row in rows]
    completion, written = padded(ids, tokenizer.pad_token_id or 0, device)
    return Group(rows, Tokens(prompt.expand(len(ids), -1), mask.expand(len(ids), -1), completion, written))


def padded(ids: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """Rows of ids, padded on the right, and which are no padding; at least one column.

    >>> [x.tolist() for x in padded([[5, 6], [7]], 0)]
    [[[5, 6], [7, 0]], [[1, 1], [1, 0]]]
    """
    width = max(1, *map(len, ids)) if len(ids) > 1 else max(1, len(ids[0]))
    filled = [[*row, *[pad] * (width - len(row))] for row in ids]
    masks = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
    return torch.tensor(filled, device=device), torch.tensor(masks, device=device)


def _question(rows: list[dict[str, Any]]) -> Row:
    question: Row = {"prompt_id": str(rows[0]["prompt_id"]), "prompt": str(rows[0]["prompt"]), "references": []}
    turns = next((row["messages"] for row in rows if row.get("messages") is not None), None)
    if turns is not None:
        question["messages"] = _turns(turns, question["prompt_id"])
    return question


def _turns(value: Any, prompt_id: str) -> list[dict[str, str]]:
    """A conversation, as JSON or as a list."""
    try:
        turns = json.loads(value) if isinstance(value, str) else list(value)
        return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in turns]
    except (TypeError, KeyError, ValueError):
        raise CalibrantError(
            f"the column 'messages' of the prompt '{prompt_id}' holds no conversation; write JSON, a list of role and "
            "content, or leave the column out"
        ) from None


def _completion_ids(row: dict[str, Any], tokenizer: Any) -> list[int]:
    text = str(row["completion"] or "")
    kept = _kept_ids(row.get("completion_ids"))
    if kept and max(kept) < len(tokenizer) and tokenizer.decode(kept, skip_special_tokens=True) == text:
        return kept
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = row.get("num_tokens") is not None and row["num_tokens"] <= len(ids)
    return ids if cut or tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def _kept_ids(value: Any) -> list[int] | None:
    """Ids as a list, or as a text of JSON, which is what a Parquet file has of a column of one's own."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        return [int(x) for x in found] if found is not None and min(found, default=-1) >= 0 else None
    except (TypeError, ValueError):
        return None


def texts_shown(rows: Sequence[dict[str, Any]], limit: int = 5) -> Iterator[dict[str, Any]]:
    """The most frequent answers of a group, with how often they came and the first one's reward."""
    frame = pd.DataFrame({"answer": [str(row["answer"])[:200] for row in rows], "reward": [r["reward"] for r in rows]})
    counts = frame["answer"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
    for answer, count in counts.head(limit).items():
        reward = frame.loc[frame["answer"] == answer, "reward"].iloc[0]
        yield {"answer": answer, "count": int(count), "reward": None if pd.isna(reward) else float(reward)}
