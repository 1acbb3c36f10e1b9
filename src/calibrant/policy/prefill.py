"""Generation with each distinct prompt read once: the cache of its tokens is repeated for its rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from calibrant.policy.decode import Decoded, can_drop, configured, decode, one_row_each
from calibrant.policy.head import has_head


@contextmanager
def shared_prefill(model: nn.Module, *, states: bool = False) -> Iterator[Decoded]:
    """Within it, `model.generate` reads each distinct prompt once and drops rows once they are finished.

    The same samples as without, up to rounding of the logits. Where nothing is repeated, a cache is given already, the
    model's cache cannot be repeated, or beams are searched, generation is as it was.

    Args:
        model: whatever `generate` is called on.
        states: whether to keep what the output head reads, for whoever needs it afterwards; not kept without a head.

    Yields:
        What the last call of `generate` has decoded, if states are kept; nothing where generation is as it was.
    """
    original: Any = model.generate
    decoded, records = Decoded(), states and has_head(model)

    def generate(input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        config, rest = configured(original.__self__, options)
        shared = one_row_each(config) and "past_key_values" not in options
        if shared and (cache := prefilled(model, input_ids, mask)) is not None:
            options["past_key_values"] = cache
            if can_drop(original.__self__, config, rest):
                options["custom_generate"] = partial(decode, decoded=decoded if records else None)
        return original(input_ids=input_ids, attention_mask=mask, **options)

    vars(model)["generate"] = generate  # of this instance; the class keeps its own
    try:
        yield decoded
    finally:
        del vars(model)["generate"]


@torch.no_grad()
def prefilled(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Cache | None:
    """The cache of all prompt tokens but the last, one entry a row; None where sharing is of no use or not possible.

    Positions are those that `generate` gives: padding is not counted.

    Args:
        model: a causal language model.
        input_ids: `[B, P]`, padded on the left.
        attention_mask: `[B, P]`.
    """
    rows = torch.cat([input_ids, attention_mask.to(input_ids)], dim=1)
    distinct, which = rows.unique(dim=0, return_inverse=True)
    length = input_ids.shape[1]
    if len(distinct) == len(rows) or length < 2:
        return None
    ids, mask = distinct[:, : length - 1], distinct[:, length : 2 * length - 1]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, Cache) or not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return None
    cache.batch_select_indices(which)
    return cache
