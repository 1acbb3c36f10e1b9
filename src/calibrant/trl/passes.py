"""What the trainer keeps of a generation batch and of a pass of a micro-batch through the policy."""

from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from calibrant.groups import Groups

MULTIMODAL = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


class Sampled(NamedTuple):
    """What TRL hands to its reward functions, and what they return."""

    rewards: Tensor  # [N * G, F] of all processes, one column per reward function
    columns: list[dict[str, Any]]  # per rollout of this process: prompt and completion as text, number of tokens


class GenerationBatch(NamedTuple):
    """The groups of a generation batch and their base advantages, for methods that weight again at every update."""

    groups: Groups
    bases: dict[str, Tensor]


class Pass(NamedTuple):
    """What TRL's `_get_per_token_logps_and_entropies` returns for a micro-batch of B completions of T tokens."""

    logps: Tensor  # [B, T]
    entropies: Tensor | None  # [B, T]
    aux_loss: Tensor | None = None  # scalar, of a mixture of experts

    def detached(self) -> dict[str, Tensor | None]:
        """Log-probabilities and entropies without their graph."""
        return {
            "logps": self.logps.detach(),
            "entropies": None if self.entropies is None else self.entropies.detach(),
        }


def with_variance(groups: Groups, rows: Tensor, variance: Tensor) -> Groups:
    """The groups with the importance-ratio variance of some rollouts; other rollouts are taken to have a ratio of 1."""
    moved = torch.zeros_like(groups.rewards).flatten()
    moved[rows] = variance.to(moved)
    return Groups(groups.rewards, {**groups.inputs, "ratio_variance": moved.view_as(groups.rewards)})


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Arguments of TRL's `_get_per_token_logps_and_entropies` for a batch as TRL keeps it."""
    return {
        "input_ids": torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        "attention_mask": torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        "logits_to_keep": batch["completion_ids"].size(1),
        **{name: batch[name] for name in MULTIMODAL if name in batch},
    }


def of_rows(arguments: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The same arguments for some rows of a batch without images."""
    return arguments | {name: arguments[name][rows] for name in ("input_ids", "attention_mask")}


Rows = TypeVar("Rows", Tensor, list[Any])


def local_rows(gathered: Rows, count: int, accelerator: Accelerator) -> Rows:
    """The rows of this process among those of all processes, each with `count`."""
    start = accelerator.process_index * count
    return gathered[start : start + count]


def complement(rows: Tensor, count: int) -> Tensor:
    """The row numbers below `count` that are not among `rows`.

    >>> complement(torch.tensor([1, 2]), 4)
    tensor([0, 3])
    """
    rest = torch.ones(count, dtype=torch.bool, device=rows.device)
    rest[rows] = False
    return rest.nonzero()[:, 0]


def merged(rows: Tensor, some: Pass, others: Tensor, constant: Pass) -> Pass:
    """One pass from those of some rows, which have a gradient, and of all the others, which have none."""
    order = torch.cat([rows, others]).argsort()

    def both(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b.detach()])[order]

    entropies = None
    if some.entropies is not None and constant.entropies is not None:
        entropies = both(some.entropies, constant.entropies)
    return Pass(both(some.logps, constant.logps), entropies)


def completion_mask(output: dict[str, Any]) -> Tensor:
    """Which tokens the policy wrote: completion tokens without those of tools, `[B, T]`."""
    mask: Tensor = output["completion_mask"]
    return mask * output["tool_mask"] if "tool_mask" in output else mask
