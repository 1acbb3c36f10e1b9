"""Log-probabilities and entropies of tokens from logits, with gradients, a few rows at a time.

What is computed from a row of logits stays in a core's cache: of a large vocabulary, several passes through memory over
all rows would take longer than the matrix product that yields the logits.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ROOM = {"cpu": 2**19, "other": 2**25}
"""Logits that are worked on at a time, by device."""


def logps_of_logits(
    logits: Tensor, tokens: Tensor, temperature: float, entropies: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities `[n]` of tokens under `softmax(logits / temperature)`, and its entropies `[n]` or None.

    Logits are `[n, V]`; results are in at least float32. The gradient with respect to the logits is
    `(onehot - p) / temperature` of a log-probability and `-p (log p + H) / temperature` of an entropy H.
    """
    logps, spread = _Logps.apply(logits, tokens, temperature, entropies)
    return logps, spread


class _Logps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, temperature: float, entropies: bool
    ) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        logps = logits.new_empty(len(tokens), dtype=wide)
        spread = torch.empty_like(logps) if entropies else None
        for rows in _tiles(logits):
            values = _log_softmax(logits[rows], temperature)
            logps[rows] = values.gather(-1, tokens[rows, None])[:, 0]
            if spread is not None:
                spread[rows] = values.exp().mul_(values).sum(-1).neg_()
        ctx.save_for_backward(logits, tokens, spread)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logps, spread

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_logps: Tensor | None, of_spread: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, tokens, spread = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _tiles(logits):
            values = _log_softmax(logits[rows], ctx.temperature)
            shares, part = values.exp(), torch.zeros_like(values[:, :1])
            if of_logps is not None:
                part = of_logps[rows, None].to(values)
            if of_spread is None:
                shares.mul_(-part)
            else:
                shares.mul_(values.add_(spread[rows, None]).mul_(of_spread[rows, None]).add_(part).neg_())
            shares.scatter_add_(-1, tokens[rows, None], part)
            gradient[rows] = shares.div_(ctx.temperature)
        return gradient, None, None, None


def _tiles(logits: Tensor) -> Iterator[slice]:
    count = max(1, ROOM["cpu" if logits.device.type == "cpu" else "other"] // max(1, logits.shape[-1]))
    for start in range(0, len(logits), count):
        yield slice(start, start + count)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """As of torch, whose sum over 49,152 words in float32 is off by 8e-6 on a CPU, and every probability with it."""
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = values / temperature if temperature != 1.0 else values
    values = values - values.amax(-1, keepdim=True)
    return values.sub_(values.exp().sum(-1, keepdim=True).log_())
