"""Rank correlation with its p-value."""

from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.groups import like_input
from calibrant.statistics.counted import counted
from calibrant.statistics.ranks import mid_ranks, with_mask
from calibrant.statistics.student import two_sided_p


class Spearman(NamedTuple):
    """`rho` in [-1, 1] and its two-sided p-value in [0, 1]."""

    rho: Tensor
    p: Tensor


def spearman(x: Tensor, y: Tensor, where: Tensor | None = None) -> Spearman:
    """Spearman's rank correlation and its two-sided p-value.

    `rho` is Pearson's correlation of the ranks of x and y, ties having the mean of their ranks. Without ties that is
    `1 - 6 sum_q (r_x(q) - r_y(q))^2 / (N (N^2 - 1))`; with ties that formula differs.
    `p = P(|T| >= |rho| sqrt((N - 2) / (1 - rho^2)))` with Student's T of N - 2 degrees of freedom.

    A pair with a NaN is out; infinities are the first and the last; leading axes are broadcast. Where x or y has no two
    different values, rho is 0 and p 1 (c); with fewer than three pairs p is 1.


    Reference: GCPO, equation 21 (b), which is the formula without ties. That the published p-values are those of
    Student's distribution is an interpretation (c); the thresholds in table 4 agree with it for 395 to 498 prompts.

    >>> rho, p = spearman(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0]))
    >>> round(rho.item(), 6), round(p.item(), 6)
    (0.8, 0.2)
    """
    mask = counted("spearman", where, x=x, y=y)
    rho = rank_correlation(x, y, mask)
    p = torch.where(rho.isnan(), 1.0, two_sided_p(rho.nan_to_num(0.0), mask.sum(-1)))
    return Spearman(like_input(rho, x), like_input(p, x))


def rank_correlation(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Spearman's `rho`, `[...]` in float64; NaN where x or y has no two different values.

    Deviations of ranks from their mean `(n + 1)/2` are multiples of 1/2, so that the sums are exact.
    """
    ranks = [mid_ranks(*with_mask(values, mask)) for values in (x, y)]
    centre = (mask.sum(-1, keepdim=True) + 1).double() / 2
    a, b = (torch.where(mask, r - centre, 0.0) for r in ranks)
    scale = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(scale > 0, ((a * b).sum(-1) / scale).clamp(-1.0, 1.0), torch.nan)
