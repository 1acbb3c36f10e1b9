"""The packed route: one forward over rows of a prompt and all of its completions, kept apart by the attention mask.

It needs no cache, so it works with gradient checkpointing, and is one forward for one backward.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from calibrant.policy.head import ForwardPass, text_config, unwrapped
from calibrant.policy.prompts import Prompts, Tokens

PROMPT, PADDING = 0, -1


class Packed(NamedTuple):
    """N rows `[N, L]`: ids, positions, segments (0: prompt, -1: padding, r + 1: batch row r), and which tokens count.

    `slots [B, T-1]` is where the completion tokens but the last of each batch row stand in its packed row; 0 for what
    is not packed.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    where: Tensor
    slots: Tensor


def packed_pass(model: nn.Module, batch: Tokens, prompts: Prompts) -> ForwardPass:
    """The pass over the packed rows of a batch.

    Positions count padding columns, as in a forward without `position_ids`.

    The model has to accept custom attention masks and positions: `packed_refusal` is None.
    """
    packed = pack(batch, prompts)
    last = batch.prompt_ids.shape[1] - 1
    inputs = {"input_ids": packed.ids, "position_ids": packed.positions, "use_cache": False}
    inputs["attention_mask"] = _masks(model, packed)

    def select(states: Tensor) -> Tensor:
        first = states[prompts.which, last][:, None]
        return torch.cat([first, states[prompts.which[:, None], packed.slots]], dim=1)

    return ForwardPass(inputs, last, select)


def packed_refusal(model: nn.Module) -> str | None:
    """Why a model cannot be given the mask and the positions of packed rows, or None."""
    config = text_config(model)
    if getattr(config, "rope_parameters", None) is None or getattr(config, "alibi", False):
        return "has no rotary positions, so that packed rows may not have the numbers of plain rows"
    if config._attn_implementation not in ("eager", "sdpa"):
        return f"runs {config._attn_implementation}, which does not accept custom attention masks (eager and sdpa do)"
    unknown = layer_types(config) - {"full_attention", "sliding_attention"}
    return f"has layers of {', '.join(sorted(unknown))}, which packed rows do not know" if unknown else None


def layer_types(config: PreTrainedConfig) -> set[str]:
    """The types of attention that the layers of a model have."""
    known = getattr(config, "layer_types", None)
    return set(known or ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"])


def pack(batch: Tokens, prompts: Prompts) -> Packed:
    """Rows of a prompt and, one after another, the completions that follow it without their last tokens."""
    columns = batch.prompt_ids.shape[1]
    slots, inside = _slots(batch, prompts)
    rows, columns_of = prompts.which[:, None].expand_as(slots)[inside], slots[inside]
    length = int(columns_of.max()) + 1 if len(columns_of) else columns
    shape = (len(prompts.first), length)
    ids, where = batch.prompt_ids.new_zeros(shape), batch.prompt_mask.new_zeros(shape, dtype=torch.bool)
    positions, segments = torch.zeros_like(ids), torch.full_like(ids, PADDING)
    ids[:, :columns], where[:, :columns] = batch.prompt_ids[prompts.first], batch.prompt_mask[prompts.first] != 0
    positions[:, :columns], segments[:, :columns] = torch.arange(columns).to(ids), PROMPT
    steps = torch.arange(columns, columns + slots.shape[1]).to(ids)
    numbers = torch.arange(1, len(slots) + 1).to(ids)
    ids[rows, columns_of] = batch.completion_ids[:, :-1][inside]
    where[rows, columns_of] = (batch.completion_mask[:, :-1] != 0)[inside]
    positions[rows, columns_of] = steps.expand_as(slots)[inside]
    segments[rows, columns_of] = numbers[:, None].expand_as(slots)[inside]
    return Packed(ids, positions, segments, where, slots)


def longest_suffix(batch: Tokens, prompts: Prompts) -> int:
    """How many completion tokens follow a prompt at most."""
    slots, inside = _slots(batch, prompts)
    return int((slots[inside] + 1 - batch.prompt_ids.shape[1]).max()) if bool(inside.any()) else 0


def _slots(batch: Tokens, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Where each completion token but the last stands in its packed row `[B, T-1]`, and which of them are packed."""
    inside = (batch.completion_mask[:, 1:] != 0).flip(1).cumsum(1).flip(1) > 0
    length = inside.sum(1)
    order = prompts.which.argsort(stable=True)
    before = (length[order].cumsum(0) - length[order])[order.argsort()]
    start = batch.prompt_ids.shape[1] + before - before[prompts.first][prompts.which]
    return torch.where(inside, start[:, None] + torch.arange(inside.shape[1]).to(start), 0), inside


def _masks(model: nn.Module, packed: Packed) -> Tensor | dict[str, Tensor]:
    """The attention mask `[N, 1, L, L]` of each type of layer, by type where there are several."""
    config = text_config(model)
    distance = packed.positions[:, :, None] - packed.positions[:, None, :]
    own = packed.segments[:, :, None] == packed.segments[:, None, :]
    seen = packed.where[:, None, :] & (own | (packed.segments[:, None, :] == PROMPT)) & (distance >= 0)
    itself = torch.eye(packed.ids.shape[1], dtype=torch.bool, device=packed.ids.device)
    masks = {}
    for name in layer_types(config):
        near = seen & (distance < config.sliding_window) if name == "sliding_attention" else seen
        masks[name] = _for_attention(model, (near | itself & ~near.any(-1, keepdim=True))[:, None])
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _for_attention(model: nn.Module, mask: Tensor) -> Tensor:
    if text_config(model)._attn_implementation == "sdpa":
        return mask
    dtype = unwrapped(model).get_input_embeddings().weight.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
