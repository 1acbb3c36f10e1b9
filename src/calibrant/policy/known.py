"""What is remembered of each model: the ways of computing that failed for it, and those that were verified."""

import warnings
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from calibrant.errors import CalibrantError
from calibrant.policy.head import model_name, unwrapped

EXACT, ROUGH = 1e-4, 5e-2
"""Largest mean relative error of what a model computes in two ways: on a CPU in float32 or float64, and elsewhere."""


class NotShared(Exception):
    """Why a model does not share prompts."""


@dataclass
class Known:
    """Ways that failed, with the reason; ways that were compared with the plain forward; whether that was said."""

    failed: dict[str, str] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    warned: bool = False


_MODELS: WeakKeyDictionary[nn.Module, Known] = WeakKeyDictionary()


def known(model: nn.Module) -> Known:
    """What is remembered of a model, inside wrappers or not."""
    return _MODELS.setdefault(unwrapped(model), Known())


def reason_of(error: Exception) -> str:
    """The first line of an error, with its type if it is somebody else's."""
    reason = next(iter(str(error).strip().splitlines()), "")
    return reason if isinstance(error, CalibrantError | NotShared) else f"{type(error).__name__}: {reason}"


def fail(model: nn.Module, way: str, error: Exception) -> None:
    """Remembers a way that a model cannot go."""
    known(model).failed[way] = reason_of(error)


def warn_once(model: nn.Module, reason: str) -> None:
    """Says, once per model, that prompts are not shared."""
    if not known(model).warned:
        known(model).warned = True
        warnings.warn(f"{model_name(model)} does not share prompts, the plain path is taken: {reason}", stacklevel=2)


def check_close(what: str, found: Tensor, expected: Tensor, *, rough: bool = False, factor: float = 1.0) -> None:
    """Compares vectors `[n, D]` with those of the plain forward; those that are not finite there are left out.

    Raises:
        NotShared: the mean of `|found - expected| / |expected|` is above `EXACT`, or `ROUGH` in half precision
            (that of the vectors, or `rough`) or on an accelerator, times `factor`.
    """
    finite = expected.isfinite().all(-1)
    found, expected = found.detach()[finite].double(), expected.detach()[finite]
    exact = not rough and expected.device.type == "cpu" and expected.dtype in (torch.float32, torch.float64)
    error = ((found - expected).norm(dim=-1) / expected.double().norm(dim=-1).clamp(min=1e-12)).mean()
    if len(found) and not error <= factor * (EXACT if exact else ROUGH):
        raise NotShared(f"{what} differ from those of the plain forward (relative error {float(error):.1e})")
