"""What a comparison of so many seeds and prompts can show: power of the test of a gain, and what follows from it.

The true parts of the variance are taken to be those that were estimated, and all effects to be normal. The power of
Student's test with estimated degrees of freedom is then an expectation over the estimates that other seeds and prompts
would have given: `E[P(|gain + se Z| > t_df^ se^)]`, over `DRAWS` draws of scaled chi-square variances, Z normal.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats

from calibrant.statistics.gains import Array, Components

LEVEL, POWER = 0.05, 0.8  # of the two-sided test; what counts as enough
MOST_SEEDS = 10_000
DRAWS, SEED = 4_000, 0


class GainTest(NamedTuple):
    """The test of a gain for given parts of the variance: is the estimate farther from 0 than a half width?"""

    half_widths: Array  # [DRAWS], `t se`, as they vary with seeds and prompts
    standard_error: float  # the true one

    def power(self, gain: float) -> float:
        """Probability that the test at `LEVEL` shows a true gain."""
        z = scipy.stats.norm
        above = z.sf((self.half_widths - gain) / self.standard_error)
        below = z.cdf((-self.half_widths - gain) / self.standard_error)
        return float(np.mean(above + below))


def gain_test(parts: Components, seeds: int | None = None) -> GainTest:
    """The test with the parts of one comparison (not batched), or with another number of seeds per cell.

    Parts of seeds shrink as 1/S, that of prompts stays.
    """
    now = [(float(v), df) for v, df in zip(parts.seeds, parts.df, strict=True)] if min(parts.df) > 0 else []
    if seeds:
        now = [(v * (df + 1) / seeds, seeds - 1) for v, df in now]
    terms, draw = [(float(parts.prompts), parts.prompt_df), *now], np.random.default_rng(SEED)
    estimates = [(v * draw.chisquare(df, DRAWS) / df, df) for v, df in terms if v]
    return GainTest(parts.half_width(estimates), sum(v for v, _ in terms) ** 0.5)


def detectable_gain(test: GainTest) -> float:
    """The gain that the test shows with a power of `POWER`."""
    high = test.standard_error
    while test.power(high) < POWER:
        high *= 2
    return float(scipy.optimize.brentq(lambda gain: test.power(gain) - POWER, 0.0, high))


def seeds_needed(gain: float, parts: Components) -> int | None:
    """Seeds per cell with which the test shows a gain with a power of `POWER`, the prompts staying the same.

    None where no number up to `MOST_SEEDS` is enough, or with one seed in either cell.
    """
    if min(parts.df) < 1 or not _enough(MOST_SEEDS, gain, parts):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _enough(middle, gain, parts) else (middle, high)
    return high


def _enough(seeds: int, gain: float, parts: Components) -> bool:
    return gain_test(parts, seeds).power(abs(gain)) >= POWER


def brown_forsythe_p(x: Array, y: Array) -> float | None:
    """p-value of equal deviations (Levene's test around medians).

    None with fewer than three values in either: both distances from a median of two are equal. Likewise where no
    distances within x or within y differ, so that any F would be infinite.

    Reference: Brown and Forsythe (1974), "Robust tests for the equality of variances".
    """
    distances = [np.abs(v - np.median(v)) for v in (x, y)]
    if min(len(x), len(y)) < 3 or not any(np.ptp(v) > 0 for v in distances):
        return None
    return float(scipy.stats.levene(x, y, center="median").pvalue)


@lru_cache
def brown_forsythe_power(seeds: int, others: int, ratio: float = 2.0) -> float | None:
    """Power at `LEVEL` against deviations in a ratio, normal values, by simulation; None with fewer than three."""
    if min(seeds, others) < 3:
        return None
    draw = np.random.default_rng(SEED).standard_normal
    x, y = ratio * draw((5 * DRAWS, seeds)), draw((5 * DRAWS, others))
    distances = (np.abs(v - np.median(v, axis=1, keepdims=True)) for v in (x, y))
    return float(np.mean(scipy.stats.f_oneway(*distances, axis=1).pvalue < LEVEL))
