"""A batch of verl's queue as groups, without verl: fields of rows, jagged `[B, T]`, to inputs of methods, and back."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.errors import CalibrantError, nearest
from calibrant.layout import Owner, RowLayout, arrange
from calibrant.policy.likelihoods import row_mean

OF_ROLLOUTS = {"mean_logprob": "old_log_probs", "ref_mean_logprob": "ref_log_prob", "token_entropy": "entropy"}
OF_TOKENS = {"token_logprobs": "old_log_probs", "token_entropies": "entropy"}
"""Input -> the field of the queue, per token, that it is the mean over tokens of, or that it is."""


class Rollouts(NamedTuple):
    """The rollouts of a batch in groups."""

    layout: RowLayout
    completions: list[str]  # N * G in group order, "" where a group has fewer than G
    references: list[list[str] | None]  # N * G
    rewards: Tensor  # [N, G], what signals read; NaN where there is no rollout
    given: dict[str, Tensor]  # inputs of methods, [N, G, ...]


def field_names(named: Collection[str], task_reward: str | None) -> list[str]:
    """The fields of the queue that hold the inputs `named`."""
    per_token = {field for name, field in (OF_ROLLOUTS | OF_TOKENS).items() if name in named}
    also = ["reward_model"] * ("correct" in named) + ["extra_fields"] * (task_reward is not None)
    return ["responses", "response_mask", "rm_scores", *sorted(per_token), *also]


def layout_of(keys: Sequence[str], tags: Sequence[Mapping[str, Any]]) -> RowLayout:
    """The layout of the rows with these keys, `uid_session_index`; tags mark padding.

    As in verl, the last output of a session stands for it.

    >>> layout_of(["a_1_0", "a_0_0", "pad_0_0"], [{}, {}, {"is_padding": True}]).rows
    tensor([[1, 0]])
    """
    owners = []
    for key, tag in zip(keys, tags, strict=True):
        uid, session, index = key.rsplit("_", 2)
        owners.append(None if tag.get("is_padding") else Owner(uid, int(session), int(index)))
    return arrange(owners)


def rollouts_of_batch(
    fields: Mapping[str, Any],
    layout: RowLayout,
    named: Collection[str],
    decode: Callable[[list[int]], str],
    task_reward: str | None = None,
) -> Rollouts:
    """The rollouts of a batch, with the inputs of `named` that fields hold.

    Completions are what the policy generated, without what tools returned (`response_mask` 0); `decode` makes texts of
    tokens. `task_reward` names a value that the reward function returned, which signals read in place of its score.
    """
    mask = padded(fields["response_mask"]).bool()
    tokens = [row[kept[: len(row)]].tolist() for row, kept in zip(fields["responses"].unbind(), mask, strict=True)]
    completions = [decode(row) if row else "" for row in layout.listed(tokens, [])]
    given = {"where": layout.where}
    for name, field in OF_ROLLOUTS.items():
        if name in named and field in fields:
            given[name] = layout.grouped(row_mean(padded(fields[field]), mask))
    for name, field in OF_TOKENS.items():
        if name in named and field in fields:
            given[name] = layout.grouped(padded(fields[field]).masked_fill(~mask, torch.nan))
    references: list[list[str] | None] = [None] * len(completions)
    if "correct" in named and "reward_model" in fields:
        gold = [_references(x) for x in fields["reward_model"]]
        references = [gold[row] for row in layout.first_rows for _ in range(layout.rows.shape[1])]
    rewards = padded(fields["rm_scores"]).sum(1)
    if task_reward is not None:
        present = (layout.slots >= 0).tolist()
        rows = zip(fields["extra_fields"], present, strict=True)
        values = [_returned(returned, task_reward) if counts else 0.0 for returned, counts in rows]
        rewards = torch.tensor(values, dtype=rewards.dtype)
    return Rollouts(layout, completions, references, layout.grouped(rewards), given)


def padded(values: Tensor) -> Tensor:
    """Jagged `[B, T]` with 0 after the end of each row."""
    return values.to_padded_tensor(0)


def _references(reward_model: Mapping[str, Any] | None) -> list[str] | None:
    """The right answers of a row: verl's `reward_model["ground_truth"]`, one or several."""
    truth = (reward_model or {}).get("ground_truth")
    if isinstance(truth, Mapping):
        raise CalibrantError(
            f"reward_model.ground_truth is a dictionary of {', '.join(map(str, truth))}, so that answers cannot be "
            "judged by it; make it a text or a list of texts"
        )
    if truth is None or isinstance(truth, str):
        return None if truth is None else [truth]
    return [str(x) for x in truth] if hasattr(truth, "__iter__") else [str(truth)]


def _returned(extra_fields: Mapping[str, Any], name: str) -> float:
    returned = extra_fields.get("reward_extra_info") or {}
    if name not in returned:
        raise CalibrantError(
            f"the reward function returned no '{name}'{nearest(name, returned)}, which task_reward names; it returned "
            f"{', '.join(returned) or 'nothing but a number'}"
        )
    return float("nan") if returned[name] is None else float(returned[name])


def first_values(values: Tensor, mask: Tensor) -> Tensor:
    """The value of each row `[B, T]` at its first token of the mask, 0 for a row without one: what all of them have."""
    first = values.gather(1, mask.long().argmax(1, keepdim=True))[:, 0]
    return torch.where(mask.any(1), first, 0.0)


def spread_out(advantages: Tensor, layout: RowLayout, mask: Tensor, before: Tensor) -> Tensor:
    """Advantages of rollouts, `[N, G]` or `[N, G, T]`, as those of tokens, `[B, T]`; padding keeps `before`."""
    if advantages.ndim == 2:
        advantages = advantages[..., None].expand(*advantages.shape, mask.shape[1])
    elif layout.split:
        raise CalibrantError(
            "the method has advantages per token, but a rollout of this batch is split over several outputs; choose a "
            "method with weights per rollout"
        )
    return torch.where((layout.slots >= 0)[:, None], layout.scattered(advantages, before) * mask, before)
