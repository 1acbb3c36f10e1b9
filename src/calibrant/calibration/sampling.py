"""Subsampling rollouts, and pass@k."""

from functools import partial

import torch
from torch import Tensor

from calibrant.calibration.answers import over_weights, weighted_mean
from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError
from calibrant.groups import like_input
from calibrant.statistics.counted import as_labels, check_count


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
    check_shapes("pass_at_k", correct=(correct, "N G"), where=(where, "N G"))
    _check_samples("pass_at_k", "k", k, correct)
    right = as_labels("pass_at_k", "correct", correct)
    mask = ~correct.isnan() if where is None else ~correct.isnan() & where
    n = mask.sum(-1, keepdim=True)
    chance = 1 - all_avoided(n, (right & mask).sum(-1, keepdim=True), torch.full_like(n, k))

    mean = partial(weighted_mean, values=chance, mask=n >= k)
    return like_input(over_weights("pass_at_k", prompt_weights, len(correct), 0, mean, correct.device), correct)


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
