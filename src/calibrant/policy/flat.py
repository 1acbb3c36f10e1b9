"""The flat route: one forward over one sequence of real tokens, each prompt once and followed by its completions.

No padding is computed, except in attention between completions of different lengths. It needs no cache, so it works
with gradient checkpointing.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from calibrant.policy.flat_attention import Block, PromptBlocks
from calibrant.policy.head import ForwardPass, text_config
from calibrant.policy.packed import layer_types, packed_refusal
from calibrant.policy.prompts import Prompts, Tokens
from calibrant.policy.verify import NotShared

TILE = 128
"""Prompt tokens that attend together: half of the columns above the diagonal of a tile are computed in vain."""
SCORES = {"cpu": 2**16, "other": 2**24}
"""Attention scores per head and block, by device: what stays in a core's cache, and what fills a GPU."""


class Flat(NamedTuple):
    """M tokens: ids and positions `[1, M]`, and where the states of the B rows of a batch stand."""

    ids: Tensor
    positions: Tensor
    blocks: list[Block]
    last: Tensor  # [B], last token of each row's prompt
    slots: Tensor  # [B, T-1], completion tokens but the last; 0 for none


def flat_pass(model: nn.Module, batch: Tokens, prompts: Prompts) -> ForwardPass:
    """The pass over the flat sequence of a batch.

    Raises NotShared for padding elsewhere than before prompts and after completions, and for a model whose layers do
    not attend by the function that transformers registers.
    """
    if not is_flat(batch):
        raise NotShared("the batch has padding elsewhere than before prompts and after completions")
    flat, config = flatten(batch, prompts), text_config(model)
    given = PromptBlocks(flat.blocks, flat.positions[0])
    nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=flat.ids.device)  # keeps the model from making a mask
    types, slots = layer_types(config), torch.cat([flat.last[:, None], flat.slots], dim=1)
    inputs = {"input_ids": flat.ids, "position_ids": flat.positions, "use_cache": False, "prompt_blocks": given}
    inputs["attention_mask"] = dict.fromkeys(types, nothing) if len(types) > 1 else nothing

    def check() -> None:
        if len(given.layers) < config.num_hidden_layers:
            raise NotShared("not all of its layers attend by the function that transformers registers")

    return ForwardPass(inputs, int(flat.last[0]), lambda states: states[0][slots], check)


def flat_refusal(model: nn.Module) -> str | None:
    """Why the attention of a model cannot be replaced for a pass, or None."""
    implementation = text_config(model)._attn_implementation
    return packed_refusal(model) if implementation == "sdpa" else f"runs {implementation}, not sdpa"


def is_flat(batch: Tokens) -> bool:
    """Whether prompts are padded on the left alone and not empty, and completions on the right alone."""
    prompt, completion = batch.prompt_mask != 0, batch.completion_mask != 0
    gap = bool((prompt[:, 1:] < prompt[:, :-1]).any()) or bool((completion[:, 1:] > completion[:, :-1]).any())
    return not gap and prompt.shape[1] > 0 and bool(prompt[:, -1].all())


def lengths_of(batch: Tokens, prompts: Prompts) -> tuple[list[int], list[int]]:
    """Tokens of each distinct prompt `[N]`, and those of each completion that are followed by another `[B]`."""
    of_prompts = batch.prompt_mask[prompts.first].sum(1)
    return of_prompts.tolist(), (batch.completion_mask.sum(1) - 1).clamp(min=0).tolist()


def flatten(batch: Tokens, prompts: Prompts) -> Flat:
    """The real tokens of a batch for which `is_flat` holds; positions count padding, as without `position_ids`."""
    columns, device = batch.prompt_ids.shape[1], batch.prompt_ids.device
    lengths, suffixes = lengths_of(batch, prompts)
    ids, positions, blocks, starts, total = [], [], [], [0] * len(suffixes), 0
    steps, ends = torch.arange(columns + batch.completion_ids.shape[1], device=device), []
    for prompt, (first, length) in enumerate(zip(prompts.first.tolist(), lengths, strict=True)):
        start, end = total, total + length
        rows = sorted((prompts.which == prompt).nonzero()[:, 0].tolist(), key=suffixes.__getitem__)
        ids.append(batch.prompt_ids[first, columns - length :])
        positions.append(steps[columns - length : columns])
        total = end
        for row in rows:
            starts[row], total = total, total + suffixes[row]
            ids.append(batch.completion_ids[row, : suffixes[row]])
            positions.append(steps[columns : columns + suffixes[row]])
        blocks += _tiles(start, end, device)
        blocks += _completions(start, end, [(starts[row], suffixes[row]) for row in rows if suffixes[row]], device)
        ends.append(end)
    offsets = torch.arange(max(0, batch.completion_ids.shape[1] - 1), device=device)
    inside = offsets < torch.tensor(suffixes, device=device)[:, None]
    slots = torch.where(inside, torch.tensor(starts, device=device)[:, None] + offsets, 0)
    last = torch.tensor(ends, device=device)[prompts.which] - 1
    return Flat(torch.cat(ids)[None], torch.cat(positions)[None], blocks, last, slots)


def _tiles(start: int, end: int, device: torch.device) -> list[Block]:
    """Tiles of nearly equal sizes of a prompt."""
    size = -(-(end - start) // -(-(end - start) // TILE))
    cuts = [*range(start, end, size), end]
    return [Block(start, a, torch.arange(a, b, device=device)[None], None) for a, b in pairwise(cuts)]


def _completions(start: int, end: int, rows: list[tuple[int, int]], device: torch.device) -> list[Block]:
    """Completions of a prompt, by start and length, in blocks of neighbours in length."""
    most = SCORES["cpu" if device.type == "cpu" else "other"]
    blocks: list[Block] = []
    while rows:
        longest = rows[-1][1]
        count = max(1, most // (longest * (end - start + longest)))
        rows, taken = rows[:-count], rows[-count:]
        starts, lengths = (torch.tensor(x, device=device)[:, None] for x in zip(*taken, strict=True))
        steps = torch.arange(longest, device=device)
        inside = steps < lengths
        blocks.append(Block(start, end, torch.where(inside, starts + steps, starts), None if inside.all() else inside))
    return blocks
