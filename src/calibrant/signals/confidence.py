"""Confidence of a policy in its answers: from the probabilities of their tokens, and from how often answers agree.

A rollout is *scored* if at least one of its tokens counts and all that count have finite values. One that is not
(an empty completion, a NaN or an infinite log-probability) has no mean, and 0 in its place would be the largest
confidence. It gets the least confidence instead (log-probability -1000, probability 0, the largest perplexity), and
has to be left out of averages, ranks and weights: `where=scored(logprobs, mask)`.
"""

import torch
from torch import Tensor

from calibrant.checks import check_shapes, is_number
from calibrant.errors import CalibrantError
from calibrant.groups import like_input

LEAST_LOGPROB = -1000.0
"""The least mean log-probability, and that of a rollout that is not scored: its exponential is 0 in float64 too."""


def scored(values: Tensor, mask: Tensor) -> Tensor:
    """Which rollouts have a mean over tokens, `[..., N, G]` boolean: the `where` of the statistics of a group.

    A rollout with one value that is not finite is left out as a whole: without that token its confidence would be too
    high (c). `values` are log-probabilities or entropies of tokens.

    >>> values = torch.tensor([[[-0.1, -0.5], [-0.1, torch.nan], [-0.1, torch.nan], [-0.1, -0.5]]])
    >>> scored(values, torch.tensor([[[1, 1], [1, 0], [1, 1], [0, 0]]]))
    tensor([[ True,  True, False, False]])
    """
    check_shapes("scored", values=(values, "... N G T"), mask=(mask, "... N G T"))
    counts = as_token_mask("scored", mask)
    return counts.any(-1) & (torch.isfinite(values) | ~counts).all(-1)


def mean_logprob(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean log-probability of the tokens of each rollout, its length-normalised log-likelihood: a confidence.

    `lpm_i = sum_t mask_it logp_it / sum_t mask_it`, in nats: in [-1000, 0]; -1000 where `scored` is False (c).

    Reference: Kuhn, Gal and Farquhar, semantic uncertainty (a); CAPO (b). The value of an empty completion is ours
    (c): the clamped formula `sum / max(T, 1)` gives 0, a probability of 1.

    >>> mean_logprob(torch.tensor([[[-0.1, -0.5, -9.0], [0.0, 0.0, 0.0]]]), torch.tensor([[[1, 1, 0], [0, 0, 0]]]))
    tensor([[-3.0000e-01, -1.0000e+03]])
    """
    check_shapes("mean_logprob", logprobs=(logprobs, "... N G T"), mask=(mask, "... N G T"))
    return like_input(token_mean("mean_logprob", logprobs, mask, LEAST_LOGPROB).clamp(min=LEAST_LOGPROB), logprobs)


def perplexity(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Perplexity of each rollout: an uncertainty.

    `PPL_i = exp(-lpm_i)` with `lpm_i` as in `mean_logprob`: the number of equally likely tokens with that mean
    log-probability. At least 1 for log-probabilities; the largest number of its type where `scored` is False (c), and
    where the result does not fit.

    Reference: CAPO (b).

    >>> logprobs = torch.tensor([[[0.25, 0.25], [0.5, 0.125]]]).log()
    >>> perplexity(logprobs, torch.ones(1, 2, 2, dtype=torch.bool)).round(decimals=4)
    tensor([[4., 4.]])
    """
    check_shapes("perplexity", logprobs=(logprobs, "... N G T"), mask=(mask, "... N G T"))
    return like_input(token_mean("perplexity", logprobs, mask, LEAST_LOGPROB).neg().exp(), logprobs)


def answer_confidence(logprobs: Tensor, answer_mask: Tensor, *, upper_bound: float | None = None) -> Tensor:
    """Geometric mean of the probabilities of the answer's tokens: a confidence.

    `c_i = exp(sum_t mask_it logp_it / sum_t mask_it)` over the answer span; `min(c_i, upper_bound)` if there is one.
    In [0, upper_bound]; 0 where `scored(logprobs, answer_mask)` is False (c). The released code divides by the count
    + 1e-6, which gives an empty span, a rollout without an answer, `exp(0) = 1`, the largest confidence.

    Args:
        logprobs: those of the sampled tokens, in GRPO-CARE under an EMA of the policy.
        answer_mask: `[..., N, G, T]`; which tokens are the answer.
        upper_bound: the largest confidence, in (0, 1]; GRPO-CARE's scripts have 0.95. None: 1.

    Reference: GRPO-CARE, consistency reward (a); the empty span (c).

    >>> spans = torch.tensor([[[0, 1, 1], [0, 0, 1], [0, 0, 0]]])
    >>> probabilities = torch.tensor([0.1, 0.5, 0.125]).expand(1, 3, 3)  # sqrt(0.5 * 0.125), 0.125, no answer
    >>> answer_confidence(probabilities.log(), spans)
    tensor([[0.2500, 0.1250, 0.0000]])
    """
    check_shapes("answer_confidence", logprobs=(logprobs, "... N G T"), answer_mask=(answer_mask, "... N G T"))
    bound = 1.0 if upper_bound is None else upper_bound
    if not is_number(bound) or not 0 < bound <= 1:
        raise CalibrantError(f"answer_confidence: upper_bound has to be a number in (0, 1], got {upper_bound!r}")
    confidence = token_mean("answer_confidence", logprobs, answer_mask, LEAST_LOGPROB).exp()
    return like_input(confidence.clamp(max=bound), logprobs)


def self_consistency(clusters: Tensor, where: Tensor | None = None) -> Tensor:
    """Share of the largest cluster of each group, the vote for its most frequent answer: a confidence.

    `SC = max_k n_k / n`, in [1/n, 1]; 0 if no rollout counts.

    Reference: the majority ratio by which EMPO filters groups (a).

    >>> self_consistency(torch.tensor([[7, 7, 1, 2]]))
    tensor([0.5000])
    """
    check_shapes("self_consistency", clusters=(clusters, "... N G"), where=(where, "... N G"))
    return like_input(_shares("self_consistency", clusters, where).amax(-1), clusters)


def cluster_share(clusters: Tensor, where: Tensor | None = None) -> Tensor:
    """Share of the group that has each rollout's answer: a confidence.

    `p_i = n_z(i) / n` with `z(i)` the cluster of rollout i, in [1/n, 1]; 0 for rollouts that do not count. Its largest
    value is `self_consistency`.

    Reference: EMPO, the reward (a).

    >>> cluster_share(torch.tensor([[0, 0, 1, 2]]))
    tensor([[0.5000, 0.5000, 0.2500, 0.2500]])
    """
    check_shapes("cluster_share", clusters=(clusters, "... N G"), where=(where, "... N G"))
    return like_input(_shares("cluster_share", clusters, where), clusters)


def _shares(caller: str, clusters: Tensor, where: Tensor | None) -> Tensor:
    mask = torch.ones_like(clusters, dtype=torch.bool) if where is None else where
    return same_cluster(caller, clusters, mask).sum(-1) / mask.sum(-1, keepdim=True).clamp(min=1).double()


def same_cluster(caller: str, clusters: Tensor, mask: Tensor) -> Tensor:
    """`[..., N, G, G]` boolean: which pairs of rollouts that count share a cluster, the diagonal included."""
    if clusters.is_floating_point():
        raise CalibrantError(f"{caller}: clusters have to be integers, got {clusters.dtype}")
    return (clusters[..., :, None] == clusters[..., None, :]) & mask[..., :, None] & mask[..., None, :]


def token_mean(caller: str, values: Tensor, mask: Tensor, otherwise: float) -> Tensor:
    """Mean over the tokens that count, `[..., N, G, T]` -> `[..., N, G]` in float64; `otherwise` if not scored."""
    counts = as_token_mask(caller, mask)
    total = torch.where(counts, values.detach().double(), 0.0).sum(-1)
    return torch.where(scored(values, counts), total / counts.sum(-1).clamp(min=1), otherwise)


def as_token_mask(caller: str, mask: Tensor) -> Tensor:
    """The mask as booleans; raises for a floating type."""
    if mask.is_floating_point():
        raise CalibrantError(f"{caller}: a mask of tokens has to be boolean or integers 0 and 1, got {mask.dtype}")
    return mask != 0
