"""What the trainer keeps of a generation batch and of a pass of a micro-batch through the policy."""

from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from calibrant.groups import Groups

Batch = dict[str, Any]  # tensors by name, of a generation batch or a micro-batch

MULTIMODAL = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


class GenerationBatch(NamedTuple):
    """What a method that weights again at every update reads."""

    groups: Groups
    bases: dict[str, Tensor]  # base advantages by name, [N, G]


class Pass(NamedTuple):
    """What TRL's `_get_per_token_logps_and_entropies` returns for a micro-batch of B completions of T tokens."""

    logps: Tensor  # [B, T]
    entropies: Tensor  # [B, T]
    aux_loss: Tensor | None = None  # scalar, of a mixture of experts


def with_variance(groups: Groups, rows: Tensor, variance: Tensor) -> Groups:
    """The groups with the importance-ratio variance of some rollouts; other rollouts are taken to have a ratio of 1."""
    moved = torch.zeros_like(groups.rewards).flatten()
    moved[rows] = variance.to(moved)
    return Groups(groups.rewards, {**groups.inputs, "ratio_variance": moved.view_as(groups.rewards)})


def model_inputs(batch: Batch, rows: Tensor | slice = slice(None)) -> Batch:
    """Arguments of TRL's `_get_per_token_logps_and_entropies` for a batch, or some rows of one without images."""
    return {
        "input_ids": torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)[rows],
        "attention_mask": torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)[rows],
        "logits_to_keep": batch["completion_ids"].size(1),
        **{name: batch[name] for name in MULTIMODAL if name in batch},
    }


Rows = TypeVar("Rows", Tensor, list[Any])


def local_rows(gathered: Rows, count: int, accelerator: Accelerator) -> Rows:
    """The rows of this process among those of all processes, each with `count`."""
    start = accelerator.process_index * count
    return gathered[start : start + count]


def merged(rows: Tensor, some: Pass, others: Pass) -> Pass:
    """One pass from that of some rows, boolean `[B]`, and that of all the others, which gets no gradient."""
    order = torch.cat([rows.nonzero()[:, 0], (~rows).nonzero()[:, 0]]).argsort()

    def both(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b.detach()])[order]

    return Pass(both(some.logps, others.logps), both(some.entropies, others.entropies))


def completion_mask(output: Batch) -> Tensor:
    """Which tokens the policy wrote: completion tokens without those of tools, `[B, T]`."""
    mask: Tensor = output["completion_mask"]
    return mask * output["tool_mask"] if "tool_mask" in output else mask
