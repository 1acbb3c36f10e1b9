"""Weights cast once for many passes, where autocast would cast them anew in each."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)
"""Layers whose whole forward runs in autocast's type; exact types, as subclasses may hold other weights."""


@contextmanager
def weights_cast_once(model: nn.Module) -> Iterator[None]:
    """Within it and autocast, linear layers hold their float32 weights in autocast's type; restored on exit.

    The numbers are those of autocast, which casts every weight at each pass unless it is trainable and autocast is
    entered once for all passes. Costs 2 bytes per weight of these layers meanwhile; a head that is tied to the
    embedding counts, the embedding itself stays in float32. Without autocast nothing is changed.
    """
    before = []
    try:
        for module in model.modules():
            weight = module._parameters.get("weight") if type(module) in LINEAR else None
            if weight is None or weight.dtype != torch.float32 or not torch.is_autocast_enabled(weight.device.type):
                continue
            cast = weight.detach().to(torch.get_autocast_dtype(weight.device.type))
            module._parameters["weight"] = nn.Parameter(cast, requires_grad=False)
            before.append((module, weight))
        yield
    finally:
        for module, weight in before:
            module._parameters["weight"] = weight
