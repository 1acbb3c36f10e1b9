"""From G sampled answers to one: votes of clusters of equal answers, the answer of highest confidence, and pass@k.

A vote names the rollout that is returned. In a tie the credit of a prompt, 1 in all, is split: so the accuracy of a
vote is that of breaking ties at random, in expectation.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.calibration.answers import counted_answers, over_weights, weighted_mean
from calibrant.checks import check_grouped
from calibrant.errors import CalibrantError
from calibrant.groups import like_input
from calibrant.signals.confidence import same_cluster
from calibrant.statistics.counted import as_labels, check_count

TIE = 1e-12  # totals this close, relative to the largest, are equal: the order of a sum changes its rounding
TOLERANCE = 1e-3  # rounding may put a mean log-probability this far above 0


class Vote(NamedTuple):
    """Which answer each prompt gets."""

    representative: Tensor  # [N], integers: the rollout returned, the first of those with the largest credit; -1: none
    tie_share: Tensor  # [N], its credit: 1 for a clear winner, 1/ties in a tie, 0 if none votes
    support: Tensor  # [N], confidence of that answer: its share of all votes or weights; best_of_n: its confidence
    credit: Tensor  # [N, G], the probability that each rollout is the one returned
    accuracy: Tensor | None  # [], mean over prompts of the credit on right answers; None without `correct`


def majority_vote(
    clusters: Tensor,
    where: Tensor | None = None,
    *,
    correct: Tensor | None = None,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Vote:
    """The most frequent answer, `k* = argmax_k n_k`.

    A cluster is represented by its first rollout, and T clusters of equal size have 1/T each.

    Args:
        correct: for the accuracy. A prompt in which a rollout with credit has a NaN (unknown) is out of it.
        num_samples: how many rollouts of each prompt vote: the first ones that count, or with a generator a random
            subset of them. A prompt that has fewer uses all it has. None: all.

    Reference: Wang et al. (2023), self-consistency; shared ties as in the code of RPC (arXiv:2502.00511; a).

    >>> vote = majority_vote(torch.tensor([[0, 1, 1, 2], [0, 1, 1, 0]]), correct=torch.tensor([[0, 1, 1, 0]] * 2))
    >>> vote.representative, vote.tie_share, vote.accuracy
    (tensor([1, 0]), tensor([1.0000, 0.5000]), tensor(0.7500))
    """
    check_grouped("majority_vote", clusters=clusters, where=where, correct=correct)
    mask = first_or_random("majority_vote", _mask(clusters, where), num_samples, generator)
    return _vote("majority_vote", clusters, mask.double(), mask, correct, like=clusters)


def confidence_weighted_vote(
    clusters: Tensor,
    confidence: Tensor,
    where: Tensor | None = None,
    *,
    correct: Tensor | None = None,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Vote:
    """The answer with the largest total confidence, `k* = argmax_k sum_{i in k} c_i`.

    Ties are handled as in `majority_vote`, which this is for equal confidences. Confidences are
    at least 0, e.g. `exp(mean_logprob)`; a NaN does not vote.

    Reference: weighted self-consistency, as in CAPO's comparison (c).

    >>> clusters, confidence = torch.tensor([[0, 1, 1]]), torch.tensor([[0.9, 0.2, 0.3]])
    >>> confidence_weighted_vote(clusters, confidence).representative
    tensor([0])
    """
    caller = "confidence_weighted_vote"
    check_grouped(caller, clusters=clusters, confidence=confidence, where=where, correct=correct)
    mask = _mask(confidence, where)
    weights = torch.where(mask, confidence.detach().double(), 0.0)
    if not bool(((weights >= 0) & torch.isfinite(weights)).all()):
        raise CalibrantError(
            f"{caller}: a confidence that is added up has to be finite and at least 0; exp(mean_logprob) is, "
            "mean_logprob is not"
        )
    mask = first_or_random(caller, mask, num_samples, generator)
    return _vote(caller, clusters, weights, mask, correct, like=confidence)


def perplexity_consistency(
    clusters: Tensor,
    mean_logprob: Tensor,
    text_ids: Tensor,
    where: Tensor | None = None,
    *,
    correct: Tensor | None = None,
    num_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Vote:
    """The answer with the largest total probability over its distinct completions.

    `p_i = exp(mean token log-probability)`, `conf(k) = sum_{distinct i in k} p_i / sum_{distinct i} p_i`,
    `k* = argmax_k conf(k)`. Identical completions count once, at the first of them: a probability already says how
    often a completion is expected, and adding it for each copy would turn this into majority voting.

    Args:
        mean_logprob: `[N, G]`, at most 0; a NaN does not vote.
        text_ids: `[N, G]`, integers; equal numbers in a group mean identical completions.
        num_samples: as in `majority_vote`; copies are counted among them.

    Reference: Perplexity Consistency of RPC (arXiv:2502.00511) without its pruning of reasoning paths (a). CAPO uses it
    with 16 samples (b), without saying whether it prunes or counts copies once (c).

    >>> clusters, texts = torch.tensor([[0, 0, 1]]), torch.tensor([[7, 7, 8]])
    >>> vote = perplexity_consistency(clusters, torch.tensor([[0.3, 0.3, 0.5]]).log(), texts)
    >>> vote.representative, vote.support
    (tensor([2]), tensor([0.6250]))
    """
    caller = "perplexity_consistency"
    tensors = {"clusters": clusters, "mean_logprob": mean_logprob, "text_ids": text_ids}
    check_grouped(caller, **tensors, where=where, correct=correct)
    mask = _mask(mean_logprob, where)
    logprobs = torch.where(mask, mean_logprob.detach().double(), -torch.inf)
    if bool((logprobs > TOLERANCE).any()):
        raise CalibrantError(
            f"{caller}: mean_logprob has to be at most 0, got {logprobs.max().item():g}; give natural "
            "logarithms of probabilities"
        )
    mask = first_or_random(caller, mask, num_samples, generator)
    once = mask & ~_has_earlier(same_cluster(f"{caller}, text_ids", text_ids, mask))
    top = torch.where(once, logprobs, -torch.inf).amax(-1, keepdim=True)
    weights = torch.where(once & (top > -torch.inf), (logprobs - top).exp(), 0.0)
    return _vote(caller, clusters, weights, mask, correct, like=mean_logprob)


def best_of_n(
    confidence: Tensor, where: Tensor | None = None, *, correct: Tensor | None = None, num_samples: int | None = None
) -> Vote:
    """The answer of highest confidence; with fewer samples, in expectation over all subsets.

    With n rollouts and subsets of m, a rollout with b others of its confidence (itself among the b) and a others above
    it is returned with probability `(C(n-a, m) - C(n-a-b, m)) / (b C(n, m))`; for m = n the top ones share 1. `m` is
    `num_samples`; a prompt that has fewer uses all it has. Infinite confidences are first and last.

    Reference: the usual best-of-n by a score (c); the expectation over subsets as in pass@k (c).

    >>> best_of_n(torch.tensor([[0.9, 0.1, 0.5]]), num_samples=2).credit
    tensor([[0.6667, 0.0000, 0.3333]])
    """
    check_grouped("best_of_n", confidence=confidence, where=where, correct=correct)
    mask = _mask(confidence, where)
    size = first_or_random("best_of_n", mask, num_samples, None).sum(-1, keepdim=True)
    values = torch.where(mask, confidence.detach().double(), torch.nan)
    above = (values[:, None, :] > values[:, :, None]).sum(-1)
    equal = (values[:, None, :] == values[:, :, None]).sum(-1)
    n = mask.sum(-1, keepdim=True)
    chance = all_avoided(n, above, size) - all_avoided(n, above + equal, size)
    credit = torch.where(mask, chance / equal.clamp(min=1), 0.0)
    support = torch.where(mask.any(-1), torch.where(mask, values, -torch.inf).amax(-1), 0.0)
    return _as_vote("best_of_n", credit, support, mask, correct, confidence)


def vote_accuracy(
    credit: Tensor, correct: Tensor, where: Tensor | None = None, *, prompt_weights: Tensor | None = None
) -> Tensor:
    """Accuracy of a vote: the mean over prompts of the credit `[N, G]` on right answers; 0 if no prompt counts.

    A prompt without credit, or with credit on an answer that is excluded or whose correctness is NaN, is out.

    >>> vote_accuracy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[1, 0], [1, 0]]))
    tensor(0.7500)
    """
    counted, right = counted_answers("vote_accuracy", correct, where, credit=credit)
    values = credit.detach().double()
    counts = (values > 0).any(-1) & ~((values > 0) & ~counted).any(-1)
    score = torch.where(right & counts[:, None], values, 0.0).sum(-1)
    mean = partial(weighted_mean, values=score[:, None], mask=counts[:, None])
    return like_input(over_weights("vote_accuracy", prompt_weights, credit, mean), credit)


def _mask(values: Tensor, where: Tensor | None) -> Tensor:
    return ~values.isnan() if where is None else ~values.isnan() & where


def _has_earlier(same: Tensor) -> Tensor:
    """Which rollouts have an equal one before them: `[N, G, G]` -> `[N, G]`."""
    return same.tril(-1).any(-1)


def _vote(caller: str, clusters: Tensor, weights: Tensor, mask: Tensor, correct: Tensor | None, like: Tensor) -> Vote:
    """The cluster of the largest total weight; `weights [N, G]` in float64, 0 for rollouts that add nothing."""
    same = same_cluster(caller, clusters, mask)
    weights = torch.where(mask, weights, 0.0)
    scale = weights.amax(-1, keepdim=True)
    totals = (same.double() @ torch.where(scale > 0, weights / scale, 0.0)[..., None])[..., 0]
    top = torch.where(mask, totals, -torch.inf).amax(-1, keepdim=True)
    winners = mask & (totals >= top * (1 - TIE)) & ~_has_earlier(same)
    credit = winners / winners.sum(-1, keepdim=True).clamp(min=1).double()
    total = torch.where(mask & ~_has_earlier(same), totals, 0.0).sum(-1)
    support = torch.where(total > 0, top[:, 0] / total, 0.0)
    return _as_vote(caller, credit, support, mask, correct, like)


def _as_vote(caller: str, credit: Tensor, support: Tensor, mask: Tensor, correct: Tensor | None, like: Tensor) -> Vote:
    share = credit.amax(-1)
    representative = torch.where(mask.any(-1), (credit >= share[:, None] * (1 - TIE)).int().argmax(-1), -1)
    accuracy = None if correct is None else like_input(vote_accuracy(credit, correct), like)
    return Vote(representative, like_input(share, like), like_input(support, like), like_input(credit, like), accuracy)


def first_or_random(caller: str, mask: Tensor, num_samples: int | None, generator: torch.Generator | None) -> Tensor:
    """Which rollouts are used, `[N, G]` boolean: the first `num_samples` of `mask` per prompt; None: all.

    With a generator a random subset of as many is drawn, all subsets equally likely.

    >>> first_or_random("f", torch.tensor([[False, True, True, True]]), 2, None)
    tensor([[False,  True,  True, False]])
    """
    if num_samples is None:
        return mask
    _check_samples(caller, "num_samples", num_samples, mask)
    if generator is None:
        return mask & (mask.cumsum(-1) <= num_samples)
    draws = torch.rand(mask.shape, generator=generator, dtype=torch.float64, device=generator.device).to(mask.device)
    position = torch.where(mask, draws, 2.0).argsort(-1).argsort(-1)
    return mask & (position < num_samples)


def pass_at_k(correct: Tensor, k: int, where: Tensor | None = None, *, prompt_weights: Tensor | None = None) -> Tensor:
    """Probability that at least one of k samples is right, in expectation over all subsets of k.

    `pass@k = mean over prompts of 1 - C(n - c, k) / C(n, k)`, with c right ones of n. A prompt with fewer than k
    samples is out; 0 if no prompt has k.

    Reference: Chen et al. (2021), the unbiased estimator (c).

    >>> pass_at_k(torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]]), 2)
    tensor(0.2500)
    """
    check_grouped("pass_at_k", correct=correct, where=where)
    _check_samples("pass_at_k", "k", k, correct)
    right = as_labels("pass_at_k", "correct", correct)
    mask = ~correct.isnan() if where is None else ~correct.isnan() & where
    n = mask.sum(-1, keepdim=True)
    chance = 1 - all_avoided(n, (right & mask).sum(-1, keepdim=True), torch.full_like(n, k))

    mean = partial(weighted_mean, values=chance, mask=n >= k)
    return like_input(over_weights("pass_at_k", prompt_weights, correct, mean), correct)


def all_avoided(total: Tensor, avoided: Tensor, size: Tensor) -> Tensor:
    """Probability that a random subset of m of n holds none of a given members: `C(n - a, m) / C(n, m)`, in float64.

    A product of m fractions, without factorials that overflow; meaningless for m > n.

    >>> all_avoided(torch.tensor(4), torch.tensor(1), torch.tensor(2)).item()
    0.5
    """
    chance = torch.ones(torch.broadcast_shapes(total.shape, avoided.shape, size.shape), dtype=torch.float64)
    chance = chance.to(total.device)
    for j in range(int(size.max()) if size.numel() else 0):
        factor = (total - avoided - j).clamp(min=0).double() / (total - j).clamp(min=1)
        chance = chance * torch.where(j < size, factor, 1.0)
    return chance


def _check_samples(caller: str, name: str, value: int, samples: Tensor) -> None:
    check_count(caller, **{name: value})
    if value > samples.shape[-1]:
        raise CalibrantError(f"{caller}: {name} is {value} and there are {samples.shape[-1]} samples per prompt")
