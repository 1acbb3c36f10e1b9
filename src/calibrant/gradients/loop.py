"""The reference: one backward pass per rollout, each row alone and without padding."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from calibrant.gradients.model import Options, Rows, differentiating, log_likelihoods


class Sums(NamedTuple):
    """Norms, sums and inner products of the gradients of one group."""

    squared_norms: Tensor  # [G], |g_i|^2
    squares: Tensor  # [M], |sum_i w_mi g_i|^2; 0 if `gram` is given
    gram: Tensor | None  # [G, G]


def loop_sums(
    model: nn.Module, parameters: Sequence[nn.Parameter], rows: Rows, weights: Tensor, options: Options
) -> Sums:
    """Squared norms of the gradients of a group and of their weighted sums.

    Each of the sums, with `weights` `[M, G]`, takes a float64 buffer of the size of the parameters; with `options.keep`
    all G gradients are stored instead, for their inner products. A gradient that is not finite is in no sum, and its
    squared norm is NaN.
    """
    weights = torch.eye(len(rows.ids), dtype=torch.float64) if options.keep else weights
    buffers = [torch.zeros(len(weights), p.numel(), dtype=torch.float64, device=p.device) for p in parameters]
    norms = torch.full((len(rows.ids),), torch.nan, dtype=torch.float64)
    for i, gradient in enumerate(_row_gradients(model, parameters, rows, options)):
        norm = sum(float(part.double().square().sum()) for part in gradient)
        if norm < torch.inf:
            norms[i] = norm
            for m in weights[:, i].nonzero().flatten().tolist():
                for buffer, part in zip(buffers, gradient, strict=True):
                    buffer[m].add_(part.double(), alpha=float(weights[m, i]))
    if options.keep:
        gram = torch.stack([(buffer @ buffer.T).cpu() for buffer in buffers]).sum(0)
        return Sums(norms, torch.zeros(2, dtype=torch.float64), gram)
    return Sums(norms, torch.stack([buffer.square().sum(-1).cpu() for buffer in buffers]).sum(0), None)


def _row_gradients(
    model: nn.Module, parameters: Sequence[nn.Parameter], rows: Rows, options: Options
) -> Iterator[list[Tensor]]:
    """The gradient of the log-likelihood of each row, one flat tensor per parameter."""
    for i in range(len(rows.ids)):
        row = rows.part(slice(i, i + 1))
        if not bool(row.counted.any()):
            yield [torch.zeros_like(parameter).flatten() for parameter in parameters]
            continue
        with differentiating(model, parameters), torch.enable_grad():
            total = log_likelihoods(model, row, options)[0]
            gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        yield [gradient.flatten() for gradient in gradients]
