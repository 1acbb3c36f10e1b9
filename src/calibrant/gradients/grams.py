"""Inner products of the rollouts' gradients of one layer, without keeping the gradients.

The gradient of a weight matrix is a sum over tokens of outer products, `W_i = sum_t o_it x_it^T` with the layer's
inputs `x` and the gradients `o` of its outputs. Two routes lead to `<W_i, W_j>`:

* *explicit*: build `W_i` for a few output columns at a time, all rollouts of a group at once;
* *tokens*: `sum_{s,t} (x_is . x_jt) (o_is . o_jt)`, which builds no matrix of the layer's size.

The second is cheaper if a group has fewer tokens than the layer has rows and columns (short answers, large heads).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

CHUNK = 2**20
"""Numbers in a transient matrix on a processor, whose cache holds it."""
CHUNK_ELSEWHERE = 2**25
"""The same on an accelerator, which wants few and large operations."""
NARROWEST = 32
"""Columns that a matrix product takes at least."""
MOST_TOKENS = 8192
"""Tokens of a group beyond which the square of their number is too much memory for the token route."""
PASSES = 64
"""What building a matrix costs beside the products, in operations a number."""


def row_gram(rows: Tensor) -> Tensor:
    """Inner products of rows, `[G, M]` -> `[G, G]` in float64: a variance is a difference of them.

    >>> row_gram(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    tensor([[5., 3.],
            [3., 9.]], dtype=torch.float64)
    """
    wide = rows.double()
    return wide @ wide.T


def explicit_gram(inputs: Tensor, chunks: Iterable[Tensor]) -> Tensor:
    """`<W_i, W_j>` from the matrices, for inputs `[G, T, I]` and chunks of columns `[G, T, c]`: `[G, G]`, float64."""
    gram = inputs.new_zeros(len(inputs), len(inputs), dtype=torch.float64)
    for chunk in chunks:
        gram += row_gram(torch.bmm(chunk.mT, inputs).flatten(1))
    return gram


def token_gram(inputs: Tensor, chunks: Iterable[Tensor]) -> Tensor:
    """`<W_i, W_j>` from products of tokens, for inputs `[G, T, I]` and chunks `[G, T, c]`: `[G, G]`, float64."""
    rollouts, tokens, _ = inputs.shape
    flat = inputs.flatten(0, 1).double()
    products = flat.new_zeros(len(flat), len(flat))
    for chunk in chunks:
        columns = chunk.flatten(0, 1).double()
        products.addmm_(columns, columns.T)
    return (products * (flat @ flat.T)).view(rollouts, tokens, rollouts, tokens).sum((1, 3))


def prefers_tokens(shape: Sequence[int], width_out: int) -> bool:
    """Whether the token route takes fewer operations, for inputs [G, T, I]; those in float64 count twice."""
    rollouts, tokens, width_in = shape
    explicit = rollouts * width_in * width_out * (2 * tokens + 4 * rollouts + PASSES)
    by_tokens = 4 * (rollouts * tokens) ** 2 * (width_in + width_out)
    return rollouts * tokens <= MOST_TOKENS and by_tokens < explicit


def chunk_width(inputs: Tensor, width_out: int) -> int:
    """Columns a chunk for the route that `prefers_tokens` chooses."""
    rollouts, tokens, width_in = inputs.shape
    other = tokens if prefers_tokens(inputs.shape, width_out) else width_in
    numbers = CHUNK if inputs.device.type == "cpu" else CHUNK_ELSEWHERE
    return max(NARROWEST, numbers // max(1, rollouts * other))


def matrix_gram(inputs: Tensor, chunks: Iterable[Tensor], width_out: int) -> Tensor:
    """`<W_i, W_j>` by the cheaper route.

    Args:
        inputs: `[G, T, I]`, what the layer was given.
        chunks: `[G, T, c]` each, gradients of the layer's outputs, some columns at a time; together `width_out` wide.
        width_out: O.

    Returns:
        `[G, G]`, float64.

    >>> inputs, gradients = torch.tensor([[[1.0, 2.0]], [[0.0, 1.0]]]), torch.tensor([[[3.0]], [[4.0]]])
    >>> matrix_gram(inputs, [gradients], 1)  # the matrices are [3, 6] and [0, 4]
    tensor([[45., 24.],
            [24., 16.]], dtype=torch.float64)
    """
    route = token_gram if prefers_tokens(inputs.shape, width_out) else explicit_gram
    return route(inputs, chunks)


def widened(values: Tensor) -> Tensor:
    """Half-precision values in float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
