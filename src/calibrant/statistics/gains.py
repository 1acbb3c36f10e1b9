"""The difference of two cells of a comparison, with an interval for new seeds and new prompts of the same kind.

Values are `[..., S, P]` float64, one per seed and prompt (the mean over the answers to it); leading axes are batch
axes. P is 1 for a metric without prompts. Value = cell + prompt + prompt-by-cell + seed within cell + rest, all but the
cell random, so that with D the difference of the means of x (S seeds) and y (R seeds):

    var D = var_seed(x)/S + var_seed(y)/R + var_prompt_by_cell/P + (var_rest(x)/S + var_rest(y)/R)/P

Main effects of prompts cancel, because both cells answer the same prompts. Seeds are not paired.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Components(NamedTuple):
    """Estimated parts of the variance of a difference of means, each `[...]`."""

    seeds: tuple[Array, Array]  # of x and y: variance of the seeds' means over the number of seeds
    prompts: Array  # prompt-by-cell, over P; not below 0
    df: tuple[int, int]  # degrees of freedom of `seeds`; 0: one seed, and no estimate
    prompt_df: int  # of `prompts`; 0 without prompts


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


def components(x: Array, y: Array) -> Components:
    """The parts of the variance of `mean(x) - mean(y)`, `x` `[..., S, P]` and `y` `[..., R, P]`.

    The variance of a seed's mean holds its share of the rest, and so does the variance over prompts of the
    differences; it is subtracted from the latter once. With one seed in either cell `prompts` holds both, which cannot
    be told apart.
    """
    count, prompts = x.shape[-1], np.zeros(x.shape[:-2])
    df = (x.shape[-2] - 1, y.shape[-2] - 1)
    if count > 1:
        rest = _rest(x) + _rest(y) if min(df) > 0 else prompts
        prompts = np.maximum((x.mean(-2) - y.mean(-2)).var(-1, ddof=1) / count - rest, 0.0)
    return Components((_seeds(x), _seeds(y)), prompts, df, count - 1)


def _seeds(x: Array) -> Array:
    """Variance of the mean over seeds, prompts given; 0 with one seed."""
    count = x.shape[-2]
    return x.mean(-1).var(-1, ddof=1) / count if count > 1 else np.zeros(x.shape[:-2])


def _rest(x: Array) -> Array:
    """Variance of the mean by seed-by-prompt alone, `MS / (S P)`."""
    seeds, prompts = x.shape[-2:]
    rest = x - x.mean(-1, keepdims=True) - x.mean(-2, keepdims=True) + x.mean((-2, -1), keepdims=True)
    return np.square(rest).sum((-2, -1)) / ((seeds - 1) * (prompts - 1)) / (seeds * prompts)


def difference(x: Array, y: Array) -> Difference:
    """`mean(x) - mean(y)` with its standard error; with one seed in either cell the error over prompts alone."""
    parts = components(x, y)
    value = x.mean((-2, -1)) - y.mean((-2, -1))
    terms = [(parts.prompts, parts.prompt_df)]
    if min(parts.df) > 0:
        terms += zip(parts.seeds, parts.df, strict=True)
    total, df = satterthwaite(terms)
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
