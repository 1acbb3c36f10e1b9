"""Inner products of the gradients of an output head, a few columns of the vocabulary at a time.

The outputs of a head are logits, and the gradient of a log-likelihood with respect to the logits of a token is
`onehot(y) - p`: all that a linear layer's inner products need, see `grams`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.signals.grams import chunk_width, matrix_gram

Columns = slice | Tensor


class HeadTokens(NamedTuple):
    """The tokens of one group before an output head."""

    hidden: Tensor  # [G, T, D], finite
    tokens: Tensor  # [G, T]
    counted: Tensor  # [G, T], boolean
    logits: Callable[[Columns], Tensor]  # of some columns, [G, T, c], divided by the temperature
    vocabulary: int


def head_products(head: HeadTokens, top: int | None) -> Tensor:
    """`<g_i, g_j>` for the gradients at temperature 1, `[G, G]` in float64; from all columns without `top`."""
    normaliser, best = _survey(head, top or 0)
    finite = (torch.isfinite(normaliser) | ~head.counted).all(-1, keepdim=True)
    head = head._replace(counted=head.counted & finite)
    if top is not None:
        columns = torch.cat([best[head.counted].flatten(), head.tokens[head.counted]]).unique()
        return matrix_gram(head.hidden, _with_rest(head, normaliser, columns), len(columns) + 1)
    every = (_residual(head, normaliser, columns) for columns in _slices(head))
    return matrix_gram(head.hidden, every, head.vocabulary)


def _slices(head: HeadTokens) -> Iterator[slice]:
    width = chunk_width(head.hidden.shape, head.vocabulary, device=head.hidden.device)
    for start in range(0, head.vocabulary, width):
        yield slice(start, min(start + width, head.vocabulary))


def _survey(head: HeadTokens, top: int) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials of each token, `[G, T]`, and its `top` most probable columns, `[G, T, top]`."""
    total = head.hidden.new_full(head.tokens.shape, -torch.inf)
    values, best = head.hidden.new_zeros(*head.tokens.shape, 0), head.tokens.new_zeros(*head.tokens.shape, 0)
    for columns in _slices(head):
        logits = head.logits(columns)
        total = torch.logaddexp(total, logits.logsumexp(-1))
        if not top:
            continue
        ids = torch.arange(columns.start, columns.stop, device=logits.device).expand(logits.shape)
        values, ids = torch.cat([values, logits], -1), torch.cat([best, ids], -1)
        values, chosen = values.topk(min(top, values.shape[-1]), -1)
        best = ids.gather(-1, chosen)
    return total, best


def _residual(head: HeadTokens, normaliser: Tensor, columns: Columns) -> Tensor:
    """`onehot(y) - p` in some columns, `[G, T, c]`, 0 for tokens that do not count."""
    probabilities = (head.logits(columns) - normaliser[..., None]).exp()
    ids = torch.arange(head.vocabulary, device=head.tokens.device)[columns]
    sampled = (head.tokens[..., None] == ids).to(probabilities)
    return torch.where(head.counted[..., None], sampled - probabilities, 0.0)


def _with_rest(head: HeadTokens, normaliser: Tensor, columns: Tensor) -> Iterator[Tensor]:
    """The residual in the columns, then one column for all others: the rest, spread evenly.

    A residual sums to 0 over the vocabulary, so the rest is minus the sum. Spread over m columns, the rests of two
    tokens s and t have the inner product `rest_s rest_t / m`.
    """
    kept = head.hidden.new_zeros(*head.tokens.shape, 1)
    for some in columns.split(chunk_width(head.hidden.shape, len(columns), device=head.hidden.device)):
        residual = _residual(head, normaliser, some)
        kept = kept + residual.sum(-1, keepdim=True)
        yield residual
    yield -kept / max(1, head.vocabulary - len(columns)) ** 0.5
