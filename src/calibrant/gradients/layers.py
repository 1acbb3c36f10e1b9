"""For each kind of layer, the inner products of its rollouts' gradients, from its inputs and its output gradients.

All take one group: inputs `[G, T, ...]`, gradients `[G, T, ...]`, and return `[G, G]` in float64.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from calibrant.signals.grams import chunk_width, common_start, matrix_gram, row_gram, widened


@cache
def _linear_forwards() -> tuple[Any, ...]:
    from transformers.pytorch_utils import Conv1D

    return nn.Linear.forward, Conv1D.forward


def kind_of(module: nn.Module) -> str | None:
    """ "linear", "embedding" or "elementwise" if there is a rule for the module's own parameters, else None.

    A class that replaces the forward function of a library's layer is another layer.
    """
    forward = type(module).forward
    if forward in _linear_forwards():
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding" if embedding_scale(module) is not None else None
    return "elementwise" if _is_elementwise(module) else None


def embedding_scale(module: nn.Embedding) -> float | None:
    """What an embedding multiplies its rows with, 1 but for scaled ones; None if it does anything else to them."""
    if module.max_norm is not None or module.scale_grad_by_freq:
        return None
    if type(module).forward is nn.Embedding.forward:
        return 1.0
    scale = torch.as_tensor(getattr(module, "embed_scale", torch.nan)).to(module.weight)
    ids = torch.arange(min(3, module.num_embeddings), device=module.weight.device)
    with torch.no_grad():
        return float(scale) if torch.equal(module(ids), module.weight[ids] * scale) else None


def _is_elementwise(module: nn.Module) -> bool:
    """Whether `f(x; w, b) = f(x; 0, 0) + w * s(x) + b` on the last axis, as for all kinds of normalisation.

    It is tried out: three tokens, random weights.
    """
    own = dict(module.named_parameters())
    if set(own) not in ({"weight"}, {"weight", "bias"}) or any(p.shape != (len(own["weight"]),) for p in own.values()):
        return False
    generator = torch.Generator().manual_seed(0)
    width = len(own["weight"])
    x, *random = torch.randn(2 + len(own), 3, width, generator=generator).to(own["weight"]).unbind()
    chosen = {name: value[0] for name, value in zip(own, random[1:], strict=True)}
    try:
        with torch.no_grad():
            found = functional_call(module, chosen, (x[None],))
            slope, start = _affine(module, x[None])
    except (RuntimeError, TypeError, ValueError):
        return False
    expected = start + chosen["weight"] * slope + chosen.get("bias", 0.0)
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected, atol=1e-2)


def _affine(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Slope in the weight, and the value at weight (and bias) 0."""
    ones = {name: torch.full_like(p, float(name == "weight")) for name, p in module.named_parameters()}
    start = functional_call(module, {name: torch.zeros_like(p) for name, p in ones.items()}, (x,))
    return functional_call(module, ones, (x,)) - start, start


def linear_gram(inputs: Tensor, gradients: Tensor, without: Tensor | None = None) -> Tensor:
    """The weight of a linear layer, either way round; rows (outputs) in `without` are left out."""
    inputs, gradients = widened(inputs.flatten(1, -2)), gradients.flatten(1, -2)
    outputs, shared = gradients.shape[-1], common_start(inputs)
    width = chunk_width(inputs.shape, outputs, shared, device=inputs.device)
    return matrix_gram(inputs, _columns(gradients, width, inputs.dtype, without), outputs, shared)


def _columns(gradients: Tensor, width: int, dtype: torch.dtype, without: Tensor | None) -> Iterator[Tensor]:
    for start in range(0, gradients.shape[-1], width):
        chunk = gradients[..., start : start + width].to(dtype)
        if without is not None:
            inside = without[(without >= start) & (without < start + width)] - start
            chunk = chunk.index_fill(-1, inside, 0.0)
        yield chunk


def bias_gram(gradients: Tensor) -> Tensor:
    """What is added to each output, the bias of any layer."""
    return row_gram(widened(gradients.flatten(1, -2)).sum(1))


def elementwise_gram(module: nn.Module, inputs: Tensor, gradients: Tensor) -> Tensor:
    """The weight that multiplies each output: normalisation layers."""
    slope = _affine(module, inputs)[0]
    return row_gram((widened(gradients) * slope).flatten(1, -2).sum(1))


class UsedRows(NamedTuple):
    """The rows of an embedding that a group uses, and the gradient of each that comes from elsewhere."""

    tokens: Tensor  # [U], distinct token ids
    inverse: Tensor  # [G, T], where each token is in `tokens`
    gradients: Tensor  # [G, U, D]


def tied_rows(ids: Tensor, inputs: Tensor, gradients: Tensor) -> UsedRows:
    """The part of a head's gradient that falls on rows which the embedding that shares its weight uses too."""
    tokens, inverse = ids.unique(return_inverse=True)
    inputs = widened(inputs)
    return UsedRows(tokens, inverse, torch.bmm(gradients[..., tokens].to(inputs.dtype).mT, inputs))


def unused_rows(ids: Tensor, gradients: Tensor) -> UsedRows:
    """The rows that an embedding on its own uses."""
    tokens, inverse = ids.unique(return_inverse=True)
    shape = (len(ids), len(tokens), gradients.shape[-1])
    return UsedRows(tokens, inverse, widened(gradients).new_zeros(shape))


def embedding_gram(module: nn.Embedding, rows: UsedRows, gradients: Tensor) -> Tensor:
    """The rows of an embedding that were used, with what `rows` holds from the head where the two share a weight."""
    gradients = widened(gradients) * (embedding_scale(module) or 1.0)
    if module.padding_idx is not None:
        gradients = gradients * (rows.tokens[rows.inverse] != module.padding_idx)[..., None]
    total = rows.gradients.clone()
    total.scatter_add_(1, rows.inverse[..., None].expand(gradients.shape), gradients)
    return row_gram(total.flatten(1))
