"""The cached route: prompts run once with a cache that keeps its graph, completions run on the cache repeated."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import ModelOutput

from calibrant.policy.head import CACHE, Head, Recorded, model_name, run
from calibrant.policy.prompts import Prompts, Tokens
from calibrant.policy.verify import NotShared

REPEATABLE = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that hold keys and values alone, which grow by concatenation and keep their graph.

Their subclasses hold recurrent states or indices beside those, which their methods do not select or which are
overwritten in place.
"""


def repeatable(cache: Cache | None) -> bool:
    """Whether a cache holds nothing but what can be repeated for the rollouts of a prompt."""
    if cache is None or type(cache) is not DynamicCache:
        return False
    return all(type(layer) in REPEATABLE for layer in cache.layers)


def repeatable_cache(model: nn.Module, outputs: ModelOutput | None) -> Cache:
    """The cache among the outputs of a model; NotShared is raised for one that cannot be repeated."""
    cache = getattr(outputs, CACHE, None)
    if not repeatable(cache):
        raise NotShared(
            f"{model_name(model)} keeps a cache that cannot be repeated for the rollouts of a prompt (attention with "
            "keys and values is needed in every layer)"
        )
    return cache


def cached_states(model: nn.Module, head: Head, batch: Tokens, prompts: Prompts) -> Recorded:
    """States `[B, T, D]` that predict each completion token.

    The first token is predicted from the last position of its prompt, the others from the completion before them.
    Positions count padding columns, as in a forward without `position_ids`: the cache continues the prompt's columns.
    Of the two passes the last alone goes through `DistributedDataParallel`: processes whose routes differ then still
    agree on the number of its forwards, each of which may broadcast buffers.
    """
    ids, mask = batch.prompt_ids[prompts.first], batch.prompt_mask[prompts.first]
    alone = batch.completion_ids.shape[1] <= 1
    inner = model.module if isinstance(model, DistributedDataParallel) and not alone else model
    prefix = run(inner, head, ids.shape[1] - 1, input_ids=ids, attention_mask=mask, use_cache=True)
    first = prefix.states[:, -1][prompts.which][:, None]
    if alone:
        return prefix._replace(states=first)
    order, cache = prompts.which.argsort(stable=True), repeatable_cache(model, prefix.outputs)
    if bool((prompts.rows == prompts.rows[0]).all()):
        cache.batch_repeat_interleave(int(prompts.rows[0]))
    else:
        cache.batch_select_indices(prompts.which[order])
    rows = batch.rows(order)
    later = run(
        model, head, 0, input_ids=rows.completion_ids[:, :-1], attention_mask=rows.whole()[1][:, :-1],
        use_cache=True, **{CACHE: cache},
    )  # fmt: skip
    return later._replace(states=torch.cat([first, later.states[order.argsort()]], dim=1))


def cached_refusal(model: nn.Module) -> str | None:
    """Why a model cannot run on a cache that keeps its graph, or None."""
    drops = any(getattr(module, "gradient_checkpointing", False) and module.training for module in model.modules())
    return "has gradient checkpointing switched on, which drops the cache" if drops else None
