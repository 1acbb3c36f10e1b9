"""What the trainer keeps of a generation batch and of a pass of a micro-batch through the policy."""

from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from calibrant.groups import Groups
from calibrant.policy.likelihoods import ratio_variance

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


OF_RATIOS = ("ratio_variance", "token_log_ratios")
"""The inputs that change with every update on a generation batch."""


def with_ratios(groups: Groups, rows: Tensor, logps: Tensor, old_logps: Tensor, mask: Tensor) -> Groups:
    """The groups with the importance ratios of some rollouts; other rollouts are taken to have a ratio of 1.

    `rows [B]` are the numbers of the rollouts in the groups, `logps`, `old_logps` and `mask` are `[B, T]`.
    """
    inputs = dict(groups.inputs)
    if "ratio_variance" in inputs:
        inputs["ratio_variance"] = _placed(inputs["ratio_variance"], rows, ratio_variance(logps, old_logps, mask))
    if "token_log_ratios" in inputs:
        ratios = (logps.detach() - old_logps).masked_fill(~mask.bool(), torch.nan)
        padded = nn.functional.pad(ratios, (0, inputs["token_log_ratios"].shape[2] - ratios.shape[1]), value=torch.nan)
        inputs["token_log_ratios"] = _placed(inputs["token_log_ratios"], rows, padded)
    return Groups(groups.rewards, inputs)


def _placed(values: Tensor, rows: Tensor, some: Tensor) -> Tensor:
    """Values of groups, `[N, G, ...]`, with those of some rollouts in place."""
    flat = values.flatten(0, 1).clone()
    flat[rows] = some.to(flat)
    return flat.view_as(values)


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


def whole_groups(count: int, size: int, accelerator: Accelerator) -> tuple[slice, slice]:
    """Rows of the groups of `size` that this process has a row of, among those of all, and its own among these."""
    start = accelerator.process_index * count
    first, last = start // size * size, -(-(start + count) // size) * size
    return slice(first, last), slice(start - first, start - first + count)


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
