"""What a comparison of so many seeds and prompts can show: power of the t test of a gain, and what follows from it."""

from functools import lru_cache

import numpy as np
import scipy.optimize
import scipy.stats

from calibrant.statistics.gains import Array, Components

LEVEL, POWER = 0.05, 0.8  # of the two-sided test; what counts as enough
MOST_SEEDS = 10_000
LARGEST_SHIFT = 40.0  # in standard errors; the power is above 0.99 there, with one degree of freedom too
SIMULATED, SIMULATION_SEED = 20_000, 0


def t_power(gain: float, standard_error: float, df: float) -> float:
    """Power of the two-sided t test at `LEVEL`, by the noncentral t distribution with `gain / standard_error`.

    >>> round(t_power(1.0, 1 / 8, 1e6), 4), round(t_power(0.0, 1.0, 4), 4)
    (1.0, 0.05)
    """
    critical = scipy.stats.t.ppf(1 - LEVEL / 2, df)
    shift = abs(gain) / standard_error
    if shift > LARGEST_SHIFT:
        return 1.0
    wrong_sign = scipy.stats.nct.cdf(-critical, df, shift) if shift < 6 else 0.0  # below 1e-11 from there, or NaN
    return float(scipy.stats.nct.sf(critical, df, shift) + wrong_sign)


def detectable_gain(standard_error: float, df: float) -> float:
    """The gain that the t test shows with a power of `POWER`.

    >>> round(detectable_gain(1.0, 1e6), 2), round(detectable_gain(1.0, 4), 2)
    (2.8, 3.76)
    """
    shift = scipy.optimize.brentq(lambda x: t_power(x, 1.0, df) - POWER, 0.0, LARGEST_SHIFT)
    return float(shift * standard_error)


def seeds_needed(gain: float, parts: Components) -> int | None:
    """Seeds per cell with which the t test shows a gain with a power of `POWER`, the prompts staying the same.

    The parts of the variance are taken as estimated: that of seeds shrinks as 1/S, that of prompts stays. None where no
    number up to `MOST_SEEDS` is enough, or with one seed in either cell.
    """
    if min(parts.df) < 1 or not _enough(MOST_SEEDS, gain, parts):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _enough(middle, gain, parts) else (middle, high)
    return high


def _enough(seeds: int, gain: float, parts: Components) -> bool:
    """Whether so many seeds per cell reach the power."""
    now = [float(v) * (df + 1) / seeds for v, df in zip(parts.seeds, parts.df, strict=True)]
    prompts = float(parts.prompts)
    total = sum(now) + prompts
    spent = sum(v**2 for v in now) / (seeds - 1) + (prompts**2 / parts.prompt_df if prompts else 0.0)
    return total == 0 or t_power(gain, total**0.5, total**2 / spent) >= POWER


def brown_forsythe_p(x: Array, y: Array) -> float | None:
    """p-value of equal deviations (Levene's test around medians); None with fewer than three values, or no spread.

    Reference: Brown and Forsythe (1974), "Robust tests for the equality of variances".
    """
    if min(len(x), len(y)) < 3:
        return None  # both distances from a median of two are equal: no spread within, and any F at all
    p = float(scipy.stats.levene(x, y, center="median").pvalue)
    return None if np.isnan(p) else p


@lru_cache
def brown_forsythe_power(seeds: int, others: int, ratio: float = 2.0) -> float | None:
    """Power at `LEVEL` against deviations in a ratio, normal values, by simulation; None with fewer than three."""
    if min(seeds, others) < 3:
        return None
    draw = np.random.default_rng(SIMULATION_SEED).standard_normal
    x, y = ratio * draw((SIMULATED, seeds)), draw((SIMULATED, others))
    distances = (np.abs(v - np.median(v, axis=1, keepdims=True)) for v in (x, y))
    return float(np.mean(scipy.stats.f_oneway(*distances, axis=1).pvalue < LEVEL))
