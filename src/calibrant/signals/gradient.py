"""Inner products of the gradients of the output head, from hidden states and probabilities alone, and their statistics.

The gradient of the log-likelihood of a rollout with respect to the head's weight is

    g_i = 1/temperature sum_t (onehot(y_it) - p_it) h_it^T

with the last hidden states `h` and the probabilities `p` of the next token, which a pass for log-probabilities computes
anyway. Only the inner products `gram` `[..., N, G, G]`, `<g_i, g_j>`, are needed, and computing them takes no matrix of
the size of vocabulary times width. They stay float64: a variance is a difference of them. The statistics here take any
inner products of gradients, those of `gradient_variance(..., gram=True)` too; a rollout with a NaN advantage or a
squared norm that is not finite does not count.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from calibrant.checks import check_non_negative, check_positive, check_shapes
from calibrant.errors import CalibrantError
from calibrant.groups import like_input, masked
from calibrant.signals import moments
from calibrant.signals.confidence import as_token_mask
from calibrant.signals.grams import chunk_width, matrix_gram, widened

Columns = slice | Tensor
Read = Callable[[int, Tensor, Tensor, Columns], Tensor]


def head_gram(
    hidden: Tensor, logits: Tensor, tokens: Tensor, mask: Tensor, *, temperature: float = 1.0, top: int | None = None
) -> Tensor:
    """Inner products `<g_i, g_j>` of the rollouts' gradients of the output head.

    `<g_i, g_j> = sum_{s,t} (h_is . h_jt) (e_is - p_is) . (e_jt - p_jt) / temperature^2` with `e = onehot(y)`.

    Exact by default. For large vocabularies `top=k` keeps the columns that are among the k most probable of any token
    of the group, and the sampled tokens; in the inner products, the rest of the probability is spread evenly over the
    other columns. With the embedded policy and k = 16 the error was at most 0.0013 of `|g_i| |g_j|`, its median 6e-5.

    Args:
        hidden: `[..., N, G, T, D]`, what the head is given to predict each token.
        logits: `[..., N, G, T, V]`, before division by the temperature; log-probabilities do as well.
        tokens: `[..., N, G, T]`, integers, the sampled tokens.

    Returns:
        float64; 0 for a rollout with a counted token whose values are not finite.

    Reference: ours (c); it follows from the head being linear.

    >>> hidden, logits = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]]), torch.zeros(1, 2, 1, 2)
    >>> head_gram(hidden, logits, torch.tensor([[[0], [1]]]), torch.ones(1, 2, 1, dtype=torch.bool))
    tensor([[[ 0.5000, -0.5000],
             [-0.5000,  1.0000]]], dtype=torch.float64)
    """
    check_shapes("head_gram", hidden=(hidden, "... N G T D"), logits=(logits, "... N G T V"))
    every = logits.detach().flatten(0, -4)

    def read(n: int, kept: Tensor, _: Tensor, columns: Columns) -> Tensor:
        return widened(every[n][:, kept][..., columns])

    options = _Options("head_gram", temperature, top)
    return _grams(hidden, tokens, mask, logits.shape[-1], read, options)


def head_gram_from_weight(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    top: int | None = None,
) -> Tensor:
    """As `head_gram`, from the head's weight `[V, D]` and bias `[V]`, with logits for some columns at a time."""
    caller = "head_gram_from_weight"
    check_shapes(caller, hidden=(hidden, "... N G T D"))
    check_shapes(caller, hidden=(hidden.flatten(0, -2), "T D"), weight=(weight, "V D"), bias=(bias, "V"))

    def read(_: int, __: Tensor, states: Tensor, columns: Columns) -> Tensor:
        shift = None if bias is None else bias.detach()[columns].to(states)
        return functional.linear(states, weight.detach()[columns].to(states), shift)

    return _grams(hidden, tokens, mask, len(weight), read, _Options(caller, temperature, top))


def head_gradient_variance(gram: Tensor, advantages: Tensor, where: Tensor | None = None) -> Tensor:
    """Variance of the advantage-weighted gradients of each group, from their inner products: the V(q) of a head.

    `V = 1/n sum_i |A_i g_i - 1/n sum_j A_j g_j|^2` over the n rollouts that count: `[..., N]`, at least 0, in units of
    squared gradients; 0 with fewer than two rollouts.

    Reference: GCPO, eq. 20 (b), of the gradient of the head alone (c).

    >>> head_gradient_variance(torch.eye(2)[None], torch.tensor([[1.0, -1.0]]))
    tensor([0.5000])
    """
    products, kept, unit = _products("head_gradient_variance", gram, advantages, where)
    return like_input(moments.gram_variance(products, moments.count(kept)) * unit, advantages)


def head_gradient_dispersion(gram: Tensor, where: Tensor | None = None) -> Tensor:
    """How much the gradients of a group disagree, without advantages: an uncertainty.

    `1 - |1/n sum_i g_i|^2 / (1/n sum_i |g_i|^2)`, the variance of the gradients relative to their mean squared norm:
    `[..., N]` in [0, 1], 0 if all gradients are equal (or 0, or fewer than two), `1 - 1/n` if they are orthogonal and
    of one length, 1 if they cancel.

    Reference: ours (c).

    >>> head_gradient_dispersion(torch.eye(4)[None])
    tensor([0.7500])
    """
    check_shapes("head_gradient_dispersion", gram=(gram, "... N G G"))
    products, kept, _ = _products("head_gradient_dispersion", gram, torch.ones_like(gram[..., 0]), where)
    n = moments.count(kept)
    scale = moments.squared_norms(products).sum(-1) / n
    share = moments.gram_variance(products, n) / torch.where(scale > 0, scale, 1.0)
    return like_input(share.clamp(max=1.0), gram)


def gradient_snr_weight(
    gram: Tensor, advantages: Tensor, where: Tensor | None = None, *, strength: float = 1.0
) -> Tensor:
    """A weight for the update of each group: the estimated share of signal in the squared norm of its mean gradient.

    `w = max(0, 1 - strength (S^2 / n) / |mean a|^2)` with `a_i = A_i g_i` and `S^2 = sum_i |a_i - mean a|^2 / (n - 1)`:
    `[..., N]` in [0, 1], 1 with fewer than two rollouts that count, and where there is no noise or strength is 0.
    The mean of n independent gradients has an expected squared norm of `|E a|^2 + S^2 / n`, so w estimates the share
    of the signal at strength 1: `|mean a|^2 - S^2 / n = sum_{i != j} <a_i, a_j> / (n (n - 1))`.

    Reference: ours (c), a positive-part shrinkage factor. Advantages of a group share its baseline and are not
    independent; the weight takes them as if they were.

    >>> gradient_snr_weight(torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]), torch.ones(1, 2))
    tensor([0.8889])
    """
    check_non_negative("gradient_snr_weight", strength=strength)
    products, kept, _ = _products("gradient_snr_weight", gram, advantages, where)
    n = moments.count(kept)
    noise = strength * moments.gram_variance(products, n) / (n - 1).clamp(min=1)
    signal = products.sum((-2, -1)) / n**2
    weight = (1 - noise / torch.where(signal > 0, signal, 1.0)).clamp(0.0, 1.0)
    weight = torch.where(signal > 0, weight, 0.0)
    return like_input(torch.where(noise > 0, weight, 1.0), advantages)


def _products(caller: str, gram: Tensor, advantages: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`<a_i, a_j>` divided by a unit, which rollouts count, and the unit, `[...]`: so scaled nothing overflows."""
    check_shapes(caller, gram=(gram, "... N G G"), advantages=(advantages, "... N G"), where=(where, "... N G"))
    products = gram.detach().double()
    norms = moments.squared_norms(products)
    values, kept = masked(advantages, torch.isfinite(norms) if where is None else torch.isfinite(norms) & where)
    size = values.abs().amax(-1)
    square = torch.where(kept, norms, 0.0).amax(-1)
    size, square = torch.where(size > 0, size, 1.0), torch.where(square > 0, square, 1.0)
    scaled = moments.kept(products, kept).nan_to_num(0.0, 0.0, 0.0) / square[..., None, None]
    return moments.weighted(scaled, values / size[..., None]), kept, square * size.square()


class _Options(NamedTuple):
    caller: str
    temperature: float
    top: int | None


def _grams(hidden: Tensor, tokens: Tensor, mask: Tensor, vocabulary: int, read: Read, options: _Options) -> Tensor:
    """Inner products group by group; `read` gives the logits of some columns of group n, for the tokens that are kept.

    Padding that all rollouts of a group have in common is removed: it would cost as much as tokens.
    """
    _check(hidden, tokens, mask, vocabulary, options)
    counted = as_token_mask(options.caller, mask).flatten(0, -3)
    states, ids = widened(hidden.detach()).flatten(0, -4), tokens.flatten(0, -3)
    counted = counted & (torch.isfinite(states).all(-1) | ~counted).all(-1, keepdim=True)
    states = torch.where(counted[..., None], states, 0.0)
    grams = states.new_zeros(*counted.shape[:2], counted.shape[1], dtype=torch.float64)
    for n, kept in enumerate(counted.any(-2)):
        hidden = states[n][:, kept]

        def logits(columns: Columns, n: int = n, kept: Tensor = kept, hidden: Tensor = hidden) -> Tensor:
            return read(n, kept, hidden, columns) / options.temperature

        head = _HeadTokens(hidden, ids[n][:, kept], counted[n][:, kept], logits, vocabulary)
        grams[n] = _head_products(head, options.top)
    return (grams / options.temperature**2).view(*tokens.shape[:-1], tokens.shape[-2])


def _check(hidden: Tensor, tokens: Tensor, mask: Tensor, vocabulary: int, options: _Options) -> None:
    caller, axes, top = options.caller, "... N G T", options.top
    check_shapes(caller, hidden=(hidden, f"{axes} D"), tokens=(tokens, axes), mask=(mask, axes))
    check_positive(caller, temperature=options.temperature)
    if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < 1):
        raise CalibrantError(f"{caller}: top has to be a positive integer or None, got {top!r}")
    if tokens.is_floating_point():
        raise CalibrantError(f"{caller}: tokens have to be integers, got {tokens.dtype}")
    outside = as_token_mask(caller, mask) & ((tokens < 0) | (tokens >= vocabulary))
    if bool(outside.any()):
        raise CalibrantError(f"{caller}: token {int(tokens[outside][0])} is not in a vocabulary of {vocabulary}")


class _HeadTokens(NamedTuple):
    """The tokens of one group before an output head."""

    hidden: Tensor  # [G, T, D], finite
    tokens: Tensor  # [G, T]
    counted: Tensor  # [G, T], boolean
    logits: Callable[[Columns], Tensor]  # of some columns, [G, T, c], divided by the temperature
    vocabulary: int


def _head_products(head: _HeadTokens, top: int | None) -> Tensor:
    """`<g_i, g_j>` for the gradients at temperature 1, `[G, G]` in float64; from all columns without `top`.

    The gradients of the logits are `onehot(y) - p`, all that the inner products of a linear layer need, see `grams`.
    """
    normaliser, best = _survey(head, top or 0)
    finite = (torch.isfinite(normaliser) | ~head.counted).all(-1, keepdim=True)
    head = head._replace(counted=head.counted & finite)
    if top is not None:
        columns = torch.cat([best[head.counted].flatten(), head.tokens[head.counted]]).unique()
        return matrix_gram(head.hidden, _with_rest(head, normaliser, columns), len(columns) + 1)
    every = (_residual(head, normaliser, columns) for columns in _slices(head))
    return matrix_gram(head.hidden, every, head.vocabulary)


def _slices(head: _HeadTokens) -> Iterator[slice]:
    width = chunk_width(head.hidden.shape, head.vocabulary, device=head.hidden.device)
    for start in range(0, head.vocabulary, width):
        yield slice(start, min(start + width, head.vocabulary))


def _survey(head: _HeadTokens, top: int) -> tuple[Tensor, Tensor]:
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


def _residual(head: _HeadTokens, normaliser: Tensor, columns: Columns) -> Tensor:
    """`onehot(y) - p` in some columns, `[G, T, c]`, 0 for tokens that do not count."""
    probabilities = (head.logits(columns) - normaliser[..., None]).exp()
    ids = torch.arange(head.vocabulary, device=head.tokens.device)[columns]
    sampled = (head.tokens[..., None] == ids).to(probabilities)
    return torch.where(head.counted[..., None], sampled - probabilities, 0.0)


def _with_rest(head: _HeadTokens, normaliser: Tensor, columns: Tensor) -> Iterator[Tensor]:
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
