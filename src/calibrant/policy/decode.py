"""Decoding that drops rows once they are finished: `generate` computes them to the end of the longest row."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerationConfig, GenerationMode
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_managed_module

from calibrant.policy import group_attention
from calibrant.policy.attention import attention_named
from calibrant.policy.block import BlockInputs
from calibrant.policy.draws import sampled
from calibrant.policy.group_attention import GroupCache
from calibrant.policy.head import CACHE, Recorded, find_head, is_sharded, recording, same_logits
from calibrant.policy.prompts import Prompts
from calibrant.policy.replays import ReplayedCache
from calibrant.policy.sampling import Sampler
from calibrant.policy.sharded import largest

Options = dict[str, Any]  # arguments of `generate`, by name
Draw = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From ids `[B, L]`, the rows `[b]` that got a pass and their logits `[b, V]`, the next tokens `[B]`."""


@dataclass
class Decoded:
    """Rows that were decoded, and what the output head and the last block read to predict each of their tokens."""

    ids: Tensor | None = None  # [B, P + T]
    rows: list[Tensor] = field(default_factory=list)  # for each token, the rows that got a pass
    states: list[Tensor] = field(default_factory=list)  # of those, [b, D]
    read: list[Tensor] = field(default_factory=list)  # by the last block: the prompts [n, P - 1, D], then [b, 1, D]
    prompts: Prompts | None = None  # those that were read
    where: Tensor | None = None  # [n, P - 1], boolean; False on padding of the prompts

    def states_of(self, completion_ids: Tensor, mask: Tensor) -> Tensor | None:
        """The states that predict each token of these completions, `[B, T, D]`; None if others were decoded.

        `mask [B, T]`: the tokens that matter; the states of others may be 0.
        """
        count, width = completion_ids.shape
        if self.ids is None or len(self.ids) != count or not 0 < width <= len(self.states):
            return None
        tokens = self.ids[:, -len(self.states) :][:, :width].to(completion_ids)
        if bool(((tokens != completion_ids) & mask.bool()).any()):
            return None
        return self._placed(self.states, count, width)

    def block_inputs_of(self, completion_ids: Tensor, mask: Tensor) -> BlockInputs | None:
        """What the last block read in these completions and their prompts, as `states_of`."""
        if self.states_of(completion_ids, mask) is None or self.prompts is None or self.where is None:
            return None
        count, width = completion_ids.shape
        first, *others = self.read
        rollouts = self._placed([read[:, -1] for read in others], count, width)
        return BlockInputs(first, self.where, self.prompts.which, rollouts)

    def _placed(self, values: list[Tensor], count: int, width: int) -> Tensor:
        """Values of each token, of the rows that got a pass, as `[B, T, D]`."""
        placed = values[0].new_zeros(count, width, values[0].shape[-1])
        for column, (rows, found) in enumerate(zip(self.rows[:width], values, strict=False)):
            placed[rows, column] = found
        return placed


class RepeatedCache:
    """A cache of transformers with an entry per row."""

    dropped = GroupCache.dropped

    def __init__(self, cache: Cache, which: Tensor) -> None:
        """`cache`: an entry per prompt; `which [B]`: the prompt of each row."""
        self.cache, self.rows = cache, torch.arange(len(which), device=which.device)
        cache.batch_select_indices(which)

    def keep(self, kept: Tensor) -> None:
        """Drops the rows but those at the positions `kept`."""
        self.rows = self.rows[kept]
        self.cache.batch_select_indices(kept)

    def next_logits(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """`[b, V]`; runs what the cache does not hold yet. Padding is not counted in positions, as in `generate`."""
        new = ids.shape[1] - self.cache.get_seq_length()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new:]
        output = model(
            input_ids=ids[:, -new:], attention_mask=mask, position_ids=positions, use_cache=True,
            **{CACHE: self.cache}, logits_to_keep=1,
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits


RowCache = GroupCache | ReplayedCache | RepeatedCache
"""All prompt tokens but the last of the rows of a batch; `rows [b]` says which of them are held, in which order."""


def decoding(model: nn.Module, cache: RowCache) -> AbstractContextManager[None]:
    """What a model has to run in on a cache."""
    return nullcontext() if isinstance(cache, RepeatedCache) else attention_named(model, group_attention.NAME)


PLAIN: dict[str, tuple[object, ...]] = {
    "num_return_sequences": (None, 1),
    "cache_implementation": (None,),
    "use_cache": (None, True),
    "guidance_scale": (None, 1),
    "watermarking_config": (None,),
    "return_dict_in_generate": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "prefill_chunk_size": (None,),
    "token_healing": (None, False),
    "stop_strings": (None,),
    "is_assistant": (None, False),
}
"""Settings of generation, and the values with which it is plain sampling or greedy search on a dynamic cache."""


def plain_sampling(model: PreTrainedModel, options: Options) -> GenerationConfig | None:
    """The configuration that `model.generate(**options)` resolves to, if `decode` can stand for it; else None.

    It can for sampling and greedy search, one sequence per row, on a dynamic cache that `generate` makes itself, from
    `input_ids` and `attention_mask [B, P]` alone, with or without a `logits_processor`: not with images or any other
    input, nor where ZeRO-3 or FSDP1 shard the weights.
    """
    ids, mask = options.get("input_ids"), options.get("attention_mask")
    if not (isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.ndim == 2 and ids.shape == mask.shape):
        return None
    config: GenerationConfig
    config, rest = model._prepare_generation_config(**{"generation_config": None, **options})
    if any(rest[name] is not None for name in rest.keys() - {"input_ids", "attention_mask", "logits_processor"}):
        return None
    simple = config.get_generation_mode() in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
    simple = simple and all(getattr(config, name, None) in values for name, values in PLAIN.items())
    unknown = is_deepspeed_zero3_enabled() or (is_fsdp_managed_module(model) and not is_sharded(model))
    return config if simple and not unknown and not model.config.is_encoder_decoder else None


def decode(
    model: nn.Module,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    prompts: RowCache,
    decoded: Decoded | None = None,
    **inputs: Any,
) -> Tensor:
    """Completed rows `[B, P + T]`, decoded from a cache; given to `generate` as `custom_generate`.

    Logits are processed, tokens drawn and ends found for the whole batch, so that the same seed gives the same samples,
    up to rounding of the logits; finished rows get no pass. Arguments are as `generate` prepares them. `decoded` is
    filled if the logits follow from the states that the head read.
    """
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask  # `generate` takes one without padding away
    draw = _drawing(logits_processor, generation_config)
    arguments = (model, input_ids, mask, draw, stopping_criteria, _padding(generation_config), prompts)
    if decoded is None:
        with decoding(model, prompts):
            ids = _decode(*arguments)[0]
        if is_sharded(model):
            _wait_for_others(model, input_ids)
        return ids
    head = find_head(model)  # raises for a sharded model
    with decoding(model, prompts), recording(head.module) as calls:
        ids, rows, logits = _decode(*arguments)
    first = Recorded(*calls[0], outputs=None)
    if len(calls) == len(rows) and same_logits(head, first._replace(states=first.states[:1, -1]), logits):
        decoded.ids, decoded.rows, decoded.states = ids, rows, [states[:, -1] for states, _ in calls]
    return ids


def _decode(
    model: nn.Module, ids: Tensor, mask: Tensor, draw: Draw, stopping_criteria: StoppingCriteriaList, pad: int,
    cache: RowCache,
) -> tuple[Tensor, list[Tensor], Tensor]:  # fmt: skip
    """Completed rows; for each new token, the rows that got a pass; logits `[1, V]` of the first of them."""
    unfinished, first, passed = torch.ones_like(cache.rows, dtype=torch.bool), torch.empty(0), []
    sharded = is_sharded(model)
    while True:
        if sharded:
            largest(1, ids.device)  # this process goes on
        rows = cache.rows
        logits = cache.next_logits(model, ids[rows], mask[rows])
        passed.append(rows)
        if len(passed) == 1:
            first = logits[:1].clone()
        tokens = draw(ids, rows, logits)
        ids = torch.cat([ids, torch.where(unfinished, tokens, pad)[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        unfinished &= ~stopping_criteria(ids, None)
        kept = unfinished[rows]
        if not kept.any():
            return ids, passed, first
        if kept.float().mean() <= 1 - cache.dropped:
            cache.keep(kept.nonzero()[:, 0])


def _wait_for_others(model: nn.Module, ids: Tensor) -> None:
    """Runs short passes until no process goes on: each pass gathers the weights of all."""
    while largest(0, ids.device):
        model(input_ids=ids[:1, :1], use_cache=False, logits_to_keep=1)


def _drawing(processor: LogitsProcessorList, config: GenerationConfig) -> Draw:
    """How the next tokens are drawn: by a `Sampler` from the logits of the rows that got a pass, if it is alone."""
    if len(processor) == 1 and isinstance(processor[0], Sampler):
        return processor[0].next_tokens
    every = torch.empty(0)

    def draw(ids: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        nonlocal every
        new = logits.float()
        if not torch.equal(rows, torch.arange(len(ids), device=ids.device)):
            every = (every if len(every) else new.new_zeros(len(ids), new.shape[1])).index_copy(0, rows, new)
            new = every.clone()  # finished rows keep their last logits: random numbers are drawn for all
        else:
            every = new
        scores = processor(ids, new)
        return sampled(scores) if config.do_sample else scores.argmax(-1)

    return draw


def _padding(config: GenerationConfig) -> int:
    """The token that fills rows after their end; the first that ends one where there is no other."""
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    ends = config.eos_token_id
    return int(ends[0] if isinstance(ends, list) else ends or 0)
