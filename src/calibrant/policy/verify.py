"""Comparing shared prompts with the plain path, and what is remembered per model: what differed, failed or agreed."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from calibrant.errors import CalibrantError, reason
from calibrant.policy.head import HALF, model_name, text_config, unwrapped

EXACT, ROUGH = 1e-4, 5e-2
"""Largest relative error of values: on a CPU in float32 or float64, and elsewhere. A gradient may have ten times it."""


class NotShared(CalibrantError):
    """Why a model does not share prompts."""


@dataclass
class ModelRecord:
    """Of one model: ways of sharing that failed, with the reason; ways that were verified; warnings that were given.

    A way is one of generation or a route of log-probabilities.
    """

    failed: dict[str, str] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    warned: set[str] = field(default_factory=set)


_RECORDS: WeakKeyDictionary[nn.Module, ModelRecord] = WeakKeyDictionary()


def record_of(model: nn.Module) -> ModelRecord:
    """The record of a model, the same inside wrappers and out."""
    return _RECORDS.setdefault(unwrapped(model), ModelRecord())


def reason_of(error: Exception) -> str:
    """The first line of an error, with its type unless it is calibrant's."""
    return reason(error) if isinstance(error, CalibrantError) else f"{type(error).__name__}: {reason(error)}"


def warn_once(model: nn.Module, reason: str, what: str = "does not share prompts, the plain path is taken") -> None:
    """Warns, once per model, of what it does for a reason."""
    if what not in record_of(model).warned:
        record_of(model).warned.add(what)
        warnings.warn(f"{model_name(model)} {what}: {reason}", stacklevel=2)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, no gradient checkpointing); each module's mode is restored on exit."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class VectorDifference(NamedTuple):
    """Of vectors v `[n, D]` from expected ones u: `max |v - u|` and the mean of `|v - u| / |u|`; of gradients g."""

    largest: float
    mean: float
    gradient: float  # |g_v - g_u| / |g_u|; NaN without parameters


def difference(shared: Tensor, plain: Tensor, weights: Sequence[Tensor] = ()) -> VectorDifference:
    """How much vectors `[n, D]` and their gradients differ from those of the plain path.

    Vectors that are not finite in the plain path are left out. The gradient is that of `sum w v` with random w, with
    respect to all of `weights` as one vector.
    """
    finite = plain.isfinite().all(-1)
    if not finite.any():
        return VectorDifference(0.0, 0.0, torch.nan)
    wide = torch.promote_types(plain.dtype, torch.float32)
    shared, plain = shared[finite].to(wide), plain[finite].to(wide)
    error, size, gradient = (shared - plain).detach(), plain.detach().norm(dim=-1).clamp(min=1e-12), torch.nan
    if weights:
        factors = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0)).to(plain)
        found, expected = (_gradient((values * factors).sum(), weights) for values in (shared, plain))
        gradient = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    return VectorDifference(float(error.abs().max()), float((error.norm(dim=-1) / size).mean()), gradient)


def _gradient(loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, list(weights), materialize_grads=True, allow_unused=True)
    return torch.cat([gradient.flatten().to(loss) for gradient in gradients])


def assert_close(model: nn.Module, what: str, both: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Compares vectors `[n, D]` of a model with those of the plain path, and gradients where there is a graph.

    `both` computes the two, in evaluation mode. Gradients of two small matrices near the input, to which all layers
    contribute; not of vectors, as biases of keys have a gradient of 0 up to rounding. Raises NotShared.
    """
    inner = unwrapped(model)
    half = [next(inner.parameters()).dtype in HALF]  # autocast may be switched on inside of the model's forward alone
    handle = inner.get_input_embeddings().register_forward_hook(
        lambda _module, _ids, output: half.append(
            torch.is_autocast_enabled(output.device.type) or output.dtype in HALF  # as FSDP casts weights
        )
    )
    try:
        with evaluating(inner):
            shared, plain = both()
    finally:
        handle.remove()
    trained = [weight for weight in inner.parameters() if weight.requires_grad]
    early = sorted((w for w in trained[: len(trained) // 2 + 1] if w.ndim > 1), key=Tensor.numel)[:2]
    result = difference(shared, plain, early if plain.requires_grad else ())
    allowed = EXACT if plain.device.type == "cpu" and not any(half) else ROUGH
    if not (result.mean <= allowed and (not plain.requires_grad or result.gradient <= 10 * allowed)):
        raise NotShared(
            f"{what} differ from those of the plain forward (relative error {result.mean:.1e}, of the gradient "
            f"{result.gradient:.1e})"
        )


def short_prompts(model: nn.Module, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The last columns of prompts `[n, P]`, few but more than an attention window holds, the last row padded further.

    A comparison of these also covers padding that the first batch does not have.
    """
    config = text_config(model)
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size"))
    columns = min(ids.shape[1], 8 + max([24, *(window for window in windows if isinstance(window, int))]))
    ids, mask = ids[:, -columns:].clone(), mask[:, -columns:].clone()
    ids[-1, : columns // 4], mask[-1, : columns // 4] = getattr(config, "pad_token_id", None) or 0, 0
    return ids, mask
