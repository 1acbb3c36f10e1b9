"""Rollouts as rows of tokens, and their log-likelihoods under a model."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError

CALLER = "gradient_variance"
KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


class Options(NamedTuple):
    """How scores are computed and what is kept of their gradients."""

    temperature: float
    reduction: str  # "sum" or "mean" over the tokens of a rollout
    rows_per_chunk: int | None
    keep: bool  # whether inner products of single gradients are needed


class Rows(NamedTuple):
    """Rows of tokens: prompt and completion in one, `[R, T]` each."""

    ids: Tensor
    attended: Tensor  # boolean; False on padding
    counted: Tensor  # boolean; the tokens whose log-probabilities make up the score

    def part(self, rows: slice) -> "Rows":
        """Some of the rows, without the columns that are padding in all of them."""
        ids, attended, counted = self.ids[rows], self.attended[rows], self.counted[rows]
        columns = attended.any(0)
        return Rows(ids[:, columns], attended[:, columns], counted[:, columns])


def read_rows(batch: Mapping[str, Tensor], advantages: Tensor) -> Rows:
    """The rows of a batch with TRL's keys, checked.

    Raises:
        CalibrantError: a key is missing, shapes do not fit each other or the advantages, or a prompt is empty.
    """
    missing = [key for key in KEYS if key not in batch]
    if missing:
        raise CalibrantError(f"{CALLER}: the batch has no {', '.join(missing)}; it needs {', '.join(KEYS)}")
    prompt_ids, prompt_mask, completion_ids, completion_mask = (_flat(key, batch[key]) for key in KEYS)
    counted = completion_mask & _flat("tool_mask", batch["tool_mask"]) if "tool_mask" in batch else completion_mask
    check_shapes(
        CALLER,
        advantages=(advantages.flatten(), "N*G"),
        prompt_ids=(prompt_ids, "N*G P"),
        prompt_mask=(prompt_mask, "N*G P"),
        completion_ids=(completion_ids, "N*G T"),
        completion_mask=(completion_mask, "N*G T"),
        tool_mask=(counted, "N*G T"),
    )
    empty = (~prompt_mask.any(-1)).nonzero()
    if len(empty):
        raise CalibrantError(f"{CALLER}: the prompt of row {int(empty[0])} has no token; a first token has no score")
    return Rows(
        torch.cat([prompt_ids, completion_ids], 1),
        torch.cat([prompt_mask, completion_mask], 1),
        torch.cat([torch.zeros_like(prompt_mask), counted], 1),
    )


def _flat(key: str, values: Any) -> Tensor:
    """`[N, G, T]` or `[R, T]` as `[R, T]`; masks as booleans."""
    if not isinstance(values, Tensor) or values.ndim not in (2, 3) or values.is_floating_point():
        raise CalibrantError(f"{CALLER}: {key} has to be a tensor of integers [N*G, T] or [N, G, T]")
    rows = values.flatten(0, -2)
    return rows != 0 if key.endswith("mask") else rows


def passes(groups: int, rollouts: int, rows_per_chunk: int | None) -> Iterator[slice]:
    """Which groups go through the model together: at most that many rows, but whole groups and at least one."""
    step = max(1, (rows_per_chunk or rollouts) // rollouts)
    for start in range(0, groups, step):
        yield slice(start, min(start + step, groups))


def log_likelihoods(model: nn.Module, rows: Rows, options: Options) -> Tensor:
    """Sum (or mean) of the log-probabilities of the counted tokens of each row, `[R]`."""
    first = int(rows.counted.any(0).int().argmax())
    logits = token_logits(model, rows, rows.ids.shape[1] - first + 1)[:, :-1]
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if options.temperature != 1:
        logits = logits / options.temperature
    logprobs = -functional.cross_entropy(logits.flatten(0, 1), rows.ids[:, first:].flatten(), reduction="none")
    counted = rows.counted[:, first:]
    total = torch.where(counted, logprobs.view(counted.shape), 0.0).sum(-1)
    return total / counted.sum(-1).clamp(min=1) if options.reduction == "mean" else total


def token_logits(model: nn.Module, rows: Rows, keep: int) -> Tensor:
    """Logits of the last `keep` columns, `[R, keep, V]`; positions count from the first token that is attended to."""
    positions = (rows.attended.long().cumsum(-1) - 1).clamp(min=0)
    wanted = {"position_ids": positions, "logits_to_keep": keep, "use_cache": False}
    accepted = inspect.signature(_forward(model)).parameters
    options = {name: value for name, value in wanted.items() if name in accepted}
    return model(input_ids=rows.ids, attention_mask=rows.attended.long(), **options).logits[:, -keep:]


def _forward(model: nn.Module) -> Callable[..., Any]:
    """The forward function whose signature tells what a model takes; adapters of PEFT hide that of their base."""
    base: Any = getattr(model, "get_base_model", None)
    return base().forward if callable(base) else model.forward
