"""Power, detectable gains, numbers of seeds, Holm and the comparison of deviations."""

import itertools

import numpy as np
import pytest
import scipy.stats

from calibrant.statistics.corrections import holm
from calibrant.statistics.gains import Components, difference
from calibrant.statistics.power import (
    brown_forsythe_p,
    brown_forsythe_power,
    detectable_gain,
    gain_test,
    seeds_needed,
)

NONE = (0.0, 0.0)


def test_power_over_prompts_alone_is_that_of_the_noncentral_t():
    parts = Components(NONE, 0.01, (0, 0), 9)
    critical = scipy.stats.t.ppf(0.975, 9)
    for gain in (0.0, 0.1, 0.25, 0.5):
        nct = scipy.stats.nct(9, gain / 0.1)
        assert np.isclose(gain_test(parts).power(gain), nct.sf(critical) + nct.cdf(-critical), atol=0.01)


@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.1), (3, 0.8), (5, 0.1), (10, 0.8)])
def test_power_is_the_share_of_simulated_tests(seeds, noise):
    draw, count, prompts = np.random.default_rng(seeds), 4000, 40
    widths = (0.03, 0.01)
    x, y = (
        0.2 * draw.normal(size=(count, 1, prompts)) + w * draw.normal(size=(count, seeds, 1))
        + noise * draw.normal(size=(count, seeds, prompts)) for w in widths
    )  # fmt: skip
    rest = noise**2 / seeds / prompts
    own = tuple(w**2 / seeds + rest for w in widths)
    test = gain_test(Components(own, 0.08 / prompts, (seeds - 1, seeds - 1), prompts - 1))
    for gain in (0.0, 0.05, detectable_gain(test)):
        shown = float(np.mean(difference(x + gain, y, paired=False).p() < 0.05))
        assert np.isclose(test.power(gain), shown, atol=0.025)
    assert np.isclose(test.power(detectable_gain(test)), 0.8, atol=1e-6)


@pytest.mark.parametrize("seeds", [3, 10])
def test_power_of_pairs_is_the_share_of_simulated_tests(seeds):
    draw, count, prompts = np.random.default_rng(seeds), 4000, 40
    luck = draw.normal(size=(count, seeds, 1))
    x, y = (
        luck + 0.2 * draw.normal(size=(count, 1, prompts)) + 0.05 * draw.normal(size=(count, seeds, 1))
        + 0.1 * draw.normal(size=(count, seeds, prompts)) for _ in range(2)
    )  # fmt: skip
    own = (2 * 0.05**2 / seeds + 2 * 0.1**2 / seeds / prompts,)
    test = gain_test(Components(own, 0.08 / prompts, (seeds - 1,), prompts - 1))
    for gain in (0.0, 0.05, detectable_gain(test)):
        shown = float(np.mean(difference(x + gain, y, paired=True).p() < 0.05))
        assert np.isclose(test.power(gain), shown, atol=0.025)


def test_seeds_needed_is_the_first_number_that_reaches_the_power():
    parts = Components((4e-4, 1e-4), 1e-4, (2, 2), 31)
    powers = {seeds: gain_test(parts, seeds).power(0.05) for seeds in range(2, 12)}
    first = min(seeds for seeds, power in powers.items() if power >= 0.8)
    assert 2 < first < 11 and seeds_needed(0.05, parts) == seeds_needed(-0.05, parts) == first
    assert gain_test(parts).power(0.05) == powers[3]


def test_no_number_of_seeds_helps_where_prompts_decide():
    parts = Components((1e-4, 1e-4), 1e-2, (2, 2), 31)
    assert seeds_needed(0.1, parts) is None and seeds_needed(0.0, parts) is None
    assert seeds_needed(1.0, Components(NONE, 1e-2, (0, 0), 31)) is None  # one seed


def test_holm_by_hand():
    assert holm([]) == [] and holm([0.04]) == [0.04]
    assert holm([0.01, 0.04, 0.03, 0.005]) == [0.03, 0.06, 0.06, 0.02]  # 3*0.01, max(0.06, 0.04), 2*0.03, 4*0.005
    assert holm([0.5, 0.6]) == [1.0, 1.0]


def test_holm_is_the_closed_test_with_bonferroni():
    """A hypothesis is rejected where every set that holds it is, by the smallest p-value times the size of the set."""
    p = [0.02, 0.3, 0.02, 0.011, 0.2]
    sets = [s for n in range(1, 6) for s in itertools.combinations(range(5), n)]
    closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(5)]
    assert np.allclose(holm(p), closed)


def test_deviations_are_compared_by_scipys_test_around_medians():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=6), 3 * draw.normal(size=5)
    assert brown_forsythe_p(x, y) == scipy.stats.levene(x, y, center="median").pvalue
    assert brown_forsythe_p(x[:2], y) is None and brown_forsythe_p(np.ones(4), np.zeros(4)) is None


@pytest.mark.parametrize(("seeds", "least", "most"), [(3, 0.0, 0.01), (5, 0.01, 0.05), (10, 0.25, 0.37)])
def test_power_of_the_comparison_of_deviations_is_the_loops(seeds, least, most):
    draw = np.random.default_rng(2)
    pairs = ((2 * draw.normal(size=seeds), draw.normal(size=seeds)) for _ in range(1000))
    loop = np.mean([scipy.stats.levene(x, y, center="median").pvalue < 0.05 for x, y in pairs])
    assert least <= brown_forsythe_power(seeds, seeds) <= most and least <= loop <= most
    assert brown_forsythe_power(seeds, 2) is None
