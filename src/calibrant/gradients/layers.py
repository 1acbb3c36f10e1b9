"""Inner products of rollouts' gradients for each kind of layer, from its inputs and its output gradients.

All functions take one group, inputs `[G, T, ...]` and gradients `[G, T, ...]`, and return `[G, G]` in float64.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from calibrant.signals.grams import chunk_width, common_start, matrix_gram, row_gram, widened


class Layer(NamedTuple):
    """A layer with a rule, and which of its parameters are served."""

    kind: str
    parameters: frozenset[str]
    tied_to: nn.Module | None  # the embedding whose weight a head shares


@cache
def _linear_forwards() -> tuple[Callable[..., object], ...]:
    from transformers.pytorch_utils import Conv1D

    return nn.Linear.forward, Conv1D.forward


def layer_kind(module: nn.Module) -> str | None:
    """ "linear", "embedding" or "elementwise" if the module's own parameters have a rule, else None.

    A class that overrides the forward function of a library's layer has no rule by inheritance.
    """
    forward = type(module).forward
    if forward in _linear_forwards():
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding" if embedding_scale(module) is not None else None
    return "elementwise" if _is_elementwise(module) else None


def embedding_scale(module: nn.Embedding) -> float | None:
    """The factor of an embedding's rows, 1 for an ordinary one; None if it changes them in another way."""
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

    It is tested on three tokens with random weights.
    """
    parameters = dict(module.named_parameters())
    if set(parameters) not in ({"weight"}, {"weight", "bias"}):
        return False
    weight = parameters["weight"]
    if weight.ndim != 1 or any(p.shape != weight.shape for p in parameters.values()):
        return False
    x, *values = torch.randn(1 + len(parameters), 3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    random = {name: value[0] for name, value in zip(parameters, values, strict=True)}
    try:
        with torch.no_grad():
            result = functional_call(module, random, (x[None],))
            slope, start = _affine(module, x[None])
    except Exception:  # of a module that takes other arguments, or none of its own
        return False
    expected = start + random["weight"] * slope + random.get("bias", 0.0)
    return isinstance(result, Tensor) and result.shape == expected.shape and torch.allclose(result, expected, atol=1e-2)


def _affine(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Slope in the weight, and the value at weight (and bias) 0."""
    ones = {name: torch.full_like(p, float(name == "weight")) for name, p in module.named_parameters()}
    start = functional_call(module, {name: torch.zeros_like(p) for name, p in ones.items()}, (x,))
    return functional_call(module, ones, (x,)) - start, start


def layer_gram(
    layer: Layer, module: nn.Module, inputs: Tensor, gradients: Tensor, without: Tensor | None = None
) -> Tensor:
    """The served parameters of a linear or an elementwise layer; outputs of a linear one in `without` are left out."""
    share = bias_gram(gradients) if "bias" in layer.parameters else torch.zeros((), device=gradients.device)
    if "weight" not in layer.parameters:
        return share
    if layer.kind == "linear":
        return share + linear_gram(inputs, gradients, without)
    return share + elementwise_gram(module, inputs, gradients)


def linear_gram(inputs: Tensor, gradients: Tensor, without: Tensor | None = None) -> Tensor:
    """The weight of a linear layer, transposed or not; outputs in `without` are left out."""
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
    """The bias of any layer."""
    return row_gram(widened(gradients.flatten(1, -2)).sum(1))


def elementwise_gram(module: nn.Module, inputs: Tensor, gradients: Tensor) -> Tensor:
    """The elementwise weight of a normalisation layer."""
    slope = _affine(module, inputs)[0]
    return row_gram((widened(gradients) * slope).flatten(1, -2).sum(1))


class UsedRows(NamedTuple):
    """The rows of an embedding that a group uses, and the gradient of each from a tied head."""

    tokens: Tensor  # [U], distinct token ids
    inverse: Tensor  # [G, T], index of each token in `tokens`
    gradients: Tensor  # [G, U, D]


def tied_rows(ids: Tensor, inputs: Tensor, gradients: Tensor) -> UsedRows:
    """The part of a head's gradient on the rows that the embedding with the same weight uses too."""
    tokens, inverse = ids.unique(return_inverse=True)
    inputs = widened(inputs)
    return UsedRows(tokens, inverse, torch.bmm(gradients[..., tokens].to(inputs.dtype).mT, inputs))


def embedding_gram(module: nn.Embedding, ids: Tensor, gradients: Tensor, head: UsedRows | None) -> Tensor:
    """The used rows of an embedding, plus the gradient of a tied head."""
    gradients = widened(gradients) * (embedding_scale(module) or 1.0)
    tokens, inverse = head[:2] if head is not None else ids.unique(return_inverse=True)
    if module.padding_idx is not None:
        gradients = gradients * (tokens[inverse] != module.padding_idx)[..., None]
    total = gradients.new_zeros(len(ids), len(tokens), gradients.shape[-1]) if head is None else head.gradients.clone()
    total.scatter_add_(1, inverse[..., None].expand(gradients.shape), gradients)
    return row_gram(total.flatten(1))
