"""Inner products of the rollouts' gradients of one layer, computed without storing the gradients.

The gradient of a weight matrix is a sum over tokens of outer products, `W_i = sum_t o_it x_it^T` with the layer's
inputs `x` and the gradients `o` of its outputs. Three routes lead to `<W_i, W_j>`:

* *explicit*: build `W_i` for a few output columns at a time, all rollouts of a group at once;
* *tokens*: `sum_{s,t} (x_is . x_jt) (o_is . o_jt)`, which builds no matrix of the layer's size;
* *shared*: the same sum where rollouts begin with the same inputs, as those of one prompt do in a causal model. There
  `x_is = x_s`, and `sum_{s,t} (x_s . x_t) (o_is . o_jt) = <O_i, K O_j>` with one matrix K for all pairs.

The second is cheapest if a group has fewer tokens than the layer has rows and columns (large heads), the third for
short answers to a prompt that is not much longer than the layer is wide, the first for long answers.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

CHUNK = 2**20  # numbers in a temporary matrix on a CPU, whose cache holds it
CHUNK_ELSEWHERE = 2**25  # the same on an accelerator, where few large operations are faster
NARROWEST = 32  # minimum columns per matrix product
MOST_TOKENS = 8192  # tokens per group beyond which the square of their number is too much memory for the token route
PASSES = 64  # operations per number for building a matrix, beside the products
ROUTES = ("explicit", "tokens", "shared")


def row_gram(rows: Tensor) -> Tensor:
    """Inner products of rows, `[G, M]` -> `[G, G]` in float64: a variance is a difference of them.

    >>> row_gram(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    tensor([[5., 3.],
            [3., 9.]], dtype=torch.float64)
    """
    wide = rows.double()
    return wide @ wide.T


def explicit_gram(inputs: Tensor, chunks: Iterable[Tensor]) -> Tensor:
    """`<W_i, W_j>` from the matrices, for inputs `[G, T, I]` and chunks of columns `[G, T, c]`: `[G, G]`, float64.

    Rows of the matrices are multiplied in their own type, and their products added up in float64.
    """
    gram = inputs.new_zeros(len(inputs), len(inputs), dtype=torch.float64)
    for chunk in chunks:
        matrices = torch.bmm(chunk.mT, inputs)  # [G, c, I]
        gram += torch.bmm(matrices.transpose(0, 1), matrices.permute(1, 2, 0)).sum(0, dtype=torch.float64)
    return gram


def token_gram(inputs: Tensor, chunks: Iterable[Tensor], shared: int = 0) -> Tensor:
    """`<W_i, W_j>` from products of tokens, for inputs `[G, T, I]` and chunks `[G, T, c]`: `[G, G]`, float64.

    The first `shared` inputs are the same for all rollouts; with s, t among them and u, v among the others,
    `<W_i, W_j> = sum_{s,t} K_st (o_is . o_jt) + sum_{s,v} K_sv (o_is . o_jv) + sum_{u,t} ... + sum_{u,v} ...`.
    """
    rollouts, tokens, _ = inputs.shape
    pairs = (rollouts, tokens - shared) * 2
    start, rows = inputs[0, :shared].double(), inputs[:, shared:].flatten(0, 1).double()
    among, across = start @ start.T, (start @ rows.T).view(shared, *pairs[:2]).transpose(0, 1)
    products, gram = rows.new_zeros(len(rows), len(rows)), rows.new_zeros(rollouts, rollouts)
    for chunk in chunks:
        first, rest = chunk.double().split([shared, pairs[1]], dim=1)
        products.addmm_(rest.flatten(0, 1), rest.flatten(0, 1).T)
        crossed = first.flatten(1) @ (across @ rest).flatten(1).T
        gram += first.flatten(1) @ (among @ first).flatten(1).T + crossed + crossed.T
    return gram + (products * (rows @ rows.T)).view(pairs).sum((1, 3))


def common_start(inputs: Tensor) -> int:
    """How many leading tokens have the same inputs `[G, T, I]` in all rollouts, to the bit."""
    count = inputs.shape[1]
    for rows in (inputs[1:2], inputs[1:]):  # the first two rollouts alone often rule out most tokens
        same = (rows[:, :count] == inputs[0, :count]).all(-1).all(0)
        count = int(same.long().cumprod(0).sum())
    return count


def operations(route: str, shape: Sequence[int], width_out: int, shared: int) -> float:
    """Operations of a route for inputs [G, T, I] of which the first `shared` are common.

    Those in float64 count twice, and twice again where they are many small products.
    """
    rollouts, tokens, width_in = shape
    if route == "explicit":
        return rollouts * width_in * width_out * (2 * tokens + 4 * rollouts + PASSES)
    rows = rollouts * (tokens - (shared if route == "shared" else 0))
    if rows > MOST_TOKENS:
        return math.inf
    by_pairs = 4 * rows**2 * (width_in + width_out)
    if route == "tokens":
        return by_pairs
    return by_pairs + 8 * rollouts * shared * width_out * (tokens + 2 * rollouts) if shared else math.inf


def cheapest_route(shape: Sequence[int], width_out: int, shared: int = 0) -> str:
    """The route that takes the fewest operations."""
    return min(ROUTES, key=lambda route: operations(route, shape, width_out, shared))


def chunk_width(shape: Sequence[int], width_out: int, shared: int = 0, *, device: torch.device) -> int:
    """Columns per chunk for the cheapest route."""
    rollouts, tokens, width_in = shape
    other = width_in if cheapest_route(shape, width_out, shared) == "explicit" else tokens
    numbers = CHUNK if device.type == "cpu" else CHUNK_ELSEWHERE
    return max(NARROWEST, numbers // max(1, rollouts * other))


def matrix_gram(inputs: Tensor, chunks: Iterable[Tensor], width_out: int, shared: int = 0) -> Tensor:
    """`<W_i, W_j>` by the cheapest route, `[G, G]` in float64, for inputs `[G, T, I]` of the layer.

    `chunks` `[G, T, c]` are gradients of the layer's outputs, some columns at a time, together `width_out` wide. The
    first `shared` tokens have the same inputs in all rollouts.

    >>> inputs, gradients = torch.tensor([[[1.0, 2.0]], [[0.0, 1.0]]]), torch.tensor([[[3.0]], [[4.0]]])
    >>> matrix_gram(inputs, [gradients], 1)  # the matrices are [3, 6] and [0, 4]
    tensor([[45., 24.],
            [24., 16.]], dtype=torch.float64)
    """
    route = cheapest_route(inputs.shape, width_out, shared)
    if route == "explicit":
        return explicit_gram(inputs, chunks)
    return token_gram(inputs, chunks, shared if route == "shared" else 0)


def widened(values: Tensor) -> Tensor:
    """Half-precision values in float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
