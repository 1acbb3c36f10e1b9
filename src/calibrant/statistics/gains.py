"""The difference of two cells of a comparison, with an interval for new seeds and new prompts of the same kind.

Values are `[..., S, P]` float64, one per seed and prompt (the mean over the answers to it); leading axes are batch
axes. P is 1 for a metric without prompts. Value = cell + prompt + prompt-by-cell + seed within cell + rest, all but the
cell random. Main effects of prompts cancel in a difference, because both cells answer the same prompts.

Paired, the effects of equal seeds may be correlated: with D = x - y, of which S seeds and P prompts are a sample,

    var mean(D) = var_seed(D)/S + var_prompt(D)/P + var_rest(D)/(S P)

Not paired, with S seeds of x and R of y that have nothing in common:

    var mean(D) = var_seed(x)/S + var_seed(y)/R + var_prompt_by_cell/P + (var_rest(x)/S + var_rest(y)/R)/P
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Components(NamedTuple):
    """Estimated parts of the variance of a difference of means, each `[...]`."""

    seeds: tuple[Array, ...]  # of x and of y, or of their differences: variance of the seeds' means over their number
    prompts: Array  # prompt-by-cell, over P; not below 0
    df: tuple[int, ...]  # degrees of freedom of `seeds`; 0: one seed, and no estimate
    prompt_df: int  # of `prompts`; 0 without prompts

    @property
    def paired(self) -> bool:
        """Whether `seeds` are of pairs.

        Cochran's rule is for these. Satterthwaite's degrees of freedom would be too many: where the part of S - 1
        degrees of freedom is underestimated, the sum seems to have those of the other (coverage 92% to 95% in
        simulations with three seeds, 87% to 94% with two).
        """
        return len(self.seeds) == 1

    def sum_of(self, estimates: Sequence[tuple[Array, int]]) -> tuple[Array, Array]:
        """The sum of estimates of the parts, and its degrees of freedom."""
        return cochran(estimates) if self.paired else satterthwaite(estimates)

    def half_width(self, estimates: Sequence[tuple[Array, int]]) -> Array:
        """Half the width of the 95% interval from estimates of the parts; pairs need no degrees of freedom for it."""
        if self.paired:
            total, quantile = _cochrans_quantile(estimates)
        else:
            total, df = satterthwaite(estimates)
            quantile = scipy.stats.t.ppf(0.975, df)
        return quantile * np.sqrt(total)


class Difference(NamedTuple):
    """A difference of means with Student's reference distribution, each `[...]`; df is 0 where nothing can be said."""

    value: Array
    standard_error: Array
    df: Array

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """`value -+ t_{(1 + level)/2, df} standard_error`; NaN where df is 0."""
        half = scipy.stats.t.ppf((1 + level) / 2, self.df) * self.standard_error
        return self.value - half, self.value + half

    def p(self) -> Array:
        """Two-sided p-value of no difference."""
        return 2 * scipy.stats.t.sf(np.abs(self.value) / self.standard_error, self.df)

    def probability_above_zero(self) -> Array:
        """`P(T <= value / standard_error)`: the probability of a true gain above 0 under a flat prior (c)."""
        return scipy.stats.t.cdf(self.value / self.standard_error, self.df)


def components(x: Array, y: Array, *, paired: bool) -> Components:
    """The parts of the variance of `mean(x) - mean(y)`, `x` `[..., S, P]` and `y` `[..., R, P]`; S = R where paired.

    The variance of a seed's mean holds its share of the rest, and so does the variance over prompts of the
    differences; it is subtracted from the latter once. With one seed in either cell `prompts` holds both, which cannot
    be told apart.
    """
    samples = (x - y,) if paired else (x, y)
    count, prompts = x.shape[-1], np.zeros(x.shape[:-2])
    df = tuple(sample.shape[-2] - 1 for sample in samples)
    if count > 1:
        rest = sum(map(_rest, samples), prompts) if min(df) > 0 else prompts
        prompts = np.maximum((x.mean(-2) - y.mean(-2)).var(-1, ddof=1) / count - rest, 0.0)
    return Components(tuple(map(_seeds, samples)), prompts, df, count - 1)


def _seeds(x: Array) -> Array:
    """Variance of the mean over seeds, prompts given; 0 with one seed."""
    count = x.shape[-2]
    return x.mean(-1).var(-1, ddof=1) / count if count > 1 else np.zeros(x.shape[:-2])


def _rest(x: Array) -> Array:
    """Variance of the mean by seed-by-prompt alone, `MS / (S P)`."""
    seeds, prompts = x.shape[-2:]
    rest = x - x.mean(-1, keepdims=True) - x.mean(-2, keepdims=True) + x.mean((-2, -1), keepdims=True)
    return np.square(rest).sum((-2, -1)) / ((seeds - 1) * (prompts - 1)) / (seeds * prompts)


def difference(x: Array, y: Array, *, paired: bool) -> Difference:
    """`mean(x) - mean(y)` with its standard error; with one seed in either cell the error over prompts alone."""
    return difference_of(x.mean((-2, -1)) - y.mean((-2, -1)), components(x, y, paired=paired))


def difference_of(value: Array, parts: Components) -> Difference:
    """A difference of means with the parts of its variance."""
    terms = [(parts.prompts, parts.prompt_df)]
    if min(parts.df) > 0:
        terms += zip(parts.seeds, parts.df, strict=True)
    total, df = parts.sum_of(terms)
    return Difference(value, np.sqrt(total), df)


def satterthwaite(parts: Sequence[tuple[Array, int]]) -> tuple[Array, Array]:
    """The sum of estimated variances v_i and its degrees of freedom, `(sum_i v_i)^2 / sum_i (v_i^2 / df_i)`.

    The latter are 0 where the sum is 0. A part with df 0 has to be 0.

    Reference: Satterthwaite (1946), "An approximate distribution of estimates of variance components".

    >>> total, df = satterthwaite([(np.array(1.0), 2), (np.array(1.0), 2)])
    >>> float(total), float(df)
    (2.0, 4.0)
    """
    total = np.sum([v for v, _ in parts], axis=0)
    spent = np.sum([np.square(v) / max(df, 1) for v, df in parts], axis=0)
    return total, np.divide(np.square(total), spent, out=np.zeros_like(total), where=spent > 0)


def cochran(parts: Sequence[tuple[Array, int]]) -> tuple[Array, Array]:
    """The sum of estimated variances v_i, and the degrees of freedom with which its 95% interval is that of Cochran.

    `t_df(0.975) = sum_i (v_i t_{df_i}(0.975)) / sum_i v_i`; df is 0 where the sum is 0. A part with df 0 has to be 0.

    Reference: Cochran and Cox (1957), "Experimental Designs", section 4.14.

    >>> total, df = cochran([(np.array(1.0), 2), (np.array(1.0), 2)])
    >>> float(total), round(float(df), 6)
    (2.0, 2.0)
    """
    total, quantile = _cochrans_quantile(parts)
    return total, np.where(total > 0, scipy.special.stdtridf(0.975, quantile), 0.0)


def _cochrans_quantile(parts: Sequence[tuple[Array, int]]) -> tuple[Array, Array]:
    """The sum, and its quantile; NaN where the sum is 0."""
    total = np.sum([v for v, _ in parts], axis=0)
    weighted = np.sum([v * scipy.stats.t.ppf(0.975, max(df, 1)) for v, df in parts], axis=0)
    return total, np.divide(weighted, total, out=np.full_like(total, np.nan), where=total > 0)
