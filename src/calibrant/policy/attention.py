"""Attention functions of our own in the models of transformers, which calls them by the name in a configuration."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from calibrant.policy.verify import NotShared

IMPLEMENTATION = "_attn_implementation_internal"
"""Of configurations: the name of their attention; the public setter would set that of their parts too."""
KNOWN = {"position_ids", "cache_position"}
"""Tensors that models give their attention beside those that it names, and that do not change it."""


@contextmanager
def attention_named(model: nn.Module, name: str) -> Iterator[None]:
    """Within it, all attention of the model is the registered one; what it was before is restored on exit.

    Models make no masks for names that transformers does not know.
    """
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    switched = [config for config in configs.values() if hasattr(config, IMPLEMENTATION)]
    before = [getattr(config, IMPLEMENTATION) for config in switched]
    try:
        for config in switched:
            setattr(config, IMPLEMENTATION, name)
        yield
    finally:
        for config, implementation in zip(switched, before, strict=True):
            setattr(config, IMPLEMENTATION, implementation)


def attend_where_given(name: str, attend: Callable[..., tuple[Tensor, None]]) -> None:
    """Has `attend(module, query, key, value, given, **keywords)` compute "sdpa" in passes with the argument `name`.

    `given` is that argument, `keywords` are the others that attention is given; other passes attend as before.
    """
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]

    @wraps(usual)
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *arguments: object,
        **keywords: Any,
    ) -> Any:  # fmt: skip
        given = keywords.pop(name, None)
        if given is None:
            return usual(module, query, key, value, attention_mask, *arguments, **keywords)
        return attend(module, query, key, value, given, **keywords)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", attention)


def unknown_tensors(others: Mapping[str, object]) -> list[str]:
    """Names of tensors that attention is given and that are not known here (sinks, biases)."""
    return [name for name, x in others.items() if isinstance(x, Tensor) and name not in KNOWN]


def check_inputs(mask: Tensor | None, others: Mapping[str, object]) -> None:
    """Raises NotShared for attention that is given a mask, or tensors that are not known here (sinks, biases)."""
    unknown = unknown_tensors(others)
    if unknown or mask is not None:
        what = f"the tensors {', '.join(unknown)}" if unknown else "a mask of its own"
        raise NotShared(f"its attention is given {what}, which attention to shared prompts does not know")


def in_computed_type(*tensors: Tensor) -> list[Tensor]:
    """Queries, keys and values in the type that attention computes in: autocast's, or that of the first of them."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return [tensor.to(dtype) for tensor in tensors]


def scaled(products: Tensor, scaling: float | None, width: int, softcap: float | None) -> Tensor:
    """Scores from products of queries and keys of this width, in at least float32."""
    scores = products.to(torch.promote_types(products.dtype, torch.float32), copy=True)
    scores *= width**-0.5 if scaling is None else scaling
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)
