"""The bootstrap: statistics on resampled prompts, and intervals from them."""

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 2**18  # numbers in each of the few temporary tensors of one pass over resamples: few enough for a cache


def private_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """The generator given, or a new one with seed 0: the global one is never touched."""
    return torch.Generator(device).manual_seed(0) if generator is None else generator


def bootstrap_replicates(
    statistic: Callable[[Tensor], Tensor],
    num_prompts: int,
    resamples: int,
    *,
    width: int,
    device: torch.device,
    generator: torch.Generator | None,
) -> Tensor:
    """A statistic on resampled prompts, `[R, ...]` in float64.

    `statistic` maps numbers of prompts `[r, num_prompts]`, drawn with replacement, to `[r, ...]`; r is such that
    r * width numbers are about `CHUNK`.
    """
    source = private_generator(generator, device)
    size = max(1, CHUNK // max(1, width))
    chunks = []
    for start in range(0, resamples, size):
        shape = (min(size, resamples - start), num_prompts)
        drawn = torch.randint(0, max(1, num_prompts), shape, generator=source, device=source.device)
        chunks.append(statistic(drawn.to(device)).double())
    return torch.cat(chunks)


def percentiles(values: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Percentiles over the first axis, `[R, ...]` -> `[len(shares), ...]`, linear between neighbours, without NaN.

    NaN where all values are.

    >>> percentiles(torch.tensor([3.0, torch.nan, 1.0]), (0.25, 1.0)).tolist()
    [1.5, 3.0]
    """
    if len(values) == 0:
        return values.new_full((len(shares), *values.shape[1:]), torch.nan)
    ordered = values.sort(0).values
    last = (~values.isnan()).sum(0, keepdim=True).clamp(min=1) - 1
    results = []
    for share in shares:
        position = share * last.double()
        low = ordered.gather(0, position.floor().long())
        high = ordered.gather(0, position.ceil().long())
        results.append(torch.where(low == high, low, low + (high - low) * (position - position.floor())))
    return torch.cat(results)


def percentile_interval(value: Tensor, replicates: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Both ends of the central part of the replicates `[R, ...]`; the value itself where all replicates are NaN."""
    ends = percentiles(replicates, ((1 - level) / 2, (1 + level) / 2))
    low, high = torch.where(ends.isnan(), value.double(), ends)
    return low, high


def sign_p(differences: Tensor) -> Tensor:
    """Two-sided p-value of replicates `[R, ...]` of a difference: how often it is on the other side of 0.

    `p = min(1, 2 min(1 + #{d <= 0}, 1 + #{d >= 0}) / (1 + R))`, over the replicates that are not NaN.

    >>> sign_p(torch.tensor([1.0, 2.0, 3.0])).item(), sign_p(torch.zeros(3)).item()
    (0.5, 1.0)
    """
    count = (~differences.isnan()).sum(0).double()
    smaller = torch.minimum((differences <= 0).sum(0), (differences >= 0).sum(0)).double()
    return (2 * (1 + smaller) / (1 + count)).clamp(max=1.0)
