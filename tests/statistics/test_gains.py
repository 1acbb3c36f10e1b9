"""The interval of a gain: scipy's tests in the special cases, loops in general, coverage by simulation."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from calibrant.statistics.gains import cochran, components, difference, satterthwaite

DRAW = np.random.default_rng(7)
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "intervals.py"


def made_up(seeds, prompts, batch=(), gain=0.0):
    """Values with effects of prompts, cells by prompts, seeds and both."""
    shape = (*batch, seeds, prompts)
    level = DRAW.normal(size=(*batch, 1, prompts))
    pair = []
    for shift, width in ((gain, 0.4), (0.0, 0.1)):
        cell, seed = DRAW.normal(size=level.shape), DRAW.normal(size=(*batch, seeds, 1))
        pair.append(level + shift + 0.3 * cell + width * seed + 0.2 * DRAW.normal(size=shape))
    return pair


def test_without_prompts_and_pairs_it_is_welchs_t_test():
    x, y = made_up(3, 1)[0], made_up(5, 1)[1]
    found = difference(x, y, paired=False)
    expected = scipy.stats.ttest_ind(x[:, 0], y[:, 0], equal_var=False)
    interval = expected.confidence_interval()
    assert np.allclose([found.p(), found.df], [expected.pvalue, expected.df])
    assert np.allclose(found.interval(), [interval.low, interval.high])
    one_sided = scipy.stats.ttest_ind(x[:, 0], y[:, 0], equal_var=False, alternative="less")
    assert np.isclose(found.probability_above_zero(), one_sided.pvalue)


def test_without_prompts_pairs_are_the_paired_t_test():
    x, y = made_up(5, 1)
    found, expected = difference(x, y, paired=True), scipy.stats.ttest_rel(x[:, 0], y[:, 0])
    assert np.allclose([found.p(), found.df], [expected.pvalue, 4])
    assert np.allclose(found.interval(), expected.confidence_interval())


@pytest.mark.parametrize(("seeds", "paired"), [((1, 1), True), ((1, 1), False), ((1, 3), False)])
def test_with_one_seed_it_is_the_paired_t_test_over_prompts(seeds, paired):
    x, y = (values[:n] for values, n in zip(made_up(3, 32), seeds, strict=True))
    found, expected = difference(x, y, paired=paired), scipy.stats.ttest_rel(x.mean(0), y.mean(0))
    assert np.allclose([found.p(), found.df], [expected.pvalue, 31])
    assert np.allclose(found.interval(), expected.confidence_interval())


def test_one_seed_without_prompts_has_no_interval():
    for paired in (True, False):
        found = difference(np.array([[0.5]]), np.array([[0.4]]), paired=paired)
        assert found.df == 0 and np.isnan(found.interval()).all()


def mean_squares(x):
    """Variances of the seeds' means over S, and of seed-by-prompt over S P, by loops."""
    seeds, prompts = x.shape
    means, columns, total = [sum(row) / prompts for row in x], [sum(c) / seeds for c in x.T], x.sum() / x.size
    between = sum((m - total) ** 2 for m in means) / (seeds - 1)
    rest = sum((x[s, p] - means[s] - columns[p] + total) ** 2 for s in range(seeds) for p in range(prompts))
    return between / seeds, rest / ((seeds - 1) * (prompts - 1)) / (seeds * prompts)


def test_parts_and_degrees_of_freedom_are_the_loops():
    x, y = made_up(3, 20)[0], made_up(5, 20)[1]
    (a, rest_a), (b, rest_b) = mean_squares(x), mean_squares(y)
    change = [x[:, p].mean() - y[:, p].mean() for p in range(20)]
    c = sum((v - np.mean(change)) ** 2 for v in change) / 19 / 20 - rest_a - rest_b
    parts, found = components(x, y, paired=False), difference(x, y, paired=False)
    assert c > 0 and np.allclose([*parts.seeds, parts.prompts], [a, b, c])
    assert np.isclose(found.standard_error, (a + b + c) ** 0.5)
    assert np.isclose(found.df, (a + b + c) ** 2 / (a**2 / 2 + b**2 / 4 + c**2 / 19))


def test_parts_and_degrees_of_freedom_of_pairs_are_the_loops():
    x, y = made_up(3, 20)
    change = np.array([[x[s, p] - y[s, p] for p in range(20)] for s in range(3)])
    (a, rest), columns = mean_squares(change), [column.mean() for column in change.T]
    b = sum((v - np.mean(columns)) ** 2 for v in columns) / 19 / 20 - rest
    parts, found = components(x, y, paired=True), difference(x, y, paired=True)
    assert b > 0 and np.allclose([*parts.seeds, parts.prompts], [a, b])
    assert np.isclose(found.standard_error, (a + b) ** 0.5)
    low, high = (scipy.stats.t.ppf(0.975, df) for df in (19, 2))
    assert np.isclose(scipy.stats.t.ppf(0.975, found.df), (a * high + b * low) / (a + b))


@given(st.floats(1e-9, 1e9), st.floats(0, 1e9), st.integers(1, 40), st.integers(1, 400))
def test_cochrans_degrees_of_freedom_lie_between_those_of_the_parts(v, w, df, other):
    total, found = cochran([(np.array(v), df), (np.array(w), other)])
    assert total == v + w and min(df, other) - 1e-6 <= found <= max(df, other) + 1e-6 * other
    assert cochran([(np.zeros(2), df)])[1].tolist() == [0.0, 0.0]


def test_cochrans_degrees_of_freedom_are_never_more_than_satterthwaites():
    for v, df, other in itertools.product((0.1, 1.0, 5.0), (1, 2, 9), (31, 199)):
        terms = [(np.array(v), df), (np.array(1.0), other)]
        assert cochran(terms)[1] <= satterthwaite(terms)[1] + 1e-9


@pytest.mark.parametrize("paired", [True, False])
def test_batches_are_single_comparisons(paired):
    x, y = made_up(3, 16, batch=(4,), gain=0.2)
    whole = difference(x, y, paired=paired)
    for i in range(4):
        single = difference(x[i], y[i], paired=paired)
        assert np.allclose([v[i] for v in whole], list(single)) and np.isclose(whole.p()[i], single.p())


def test_parts_are_unbiased():
    """Without truncation: 0.4^2/3 and 0.1^2/3 of seeds, each with 0.2^2/3/64 of the rest, and 2 0.3^2/64 of prompts."""
    parts = components(*made_up(3, 64, batch=(20_000,)), paired=False)
    rest = 0.04 / 3 / 64
    expected = [0.16 / 3 + rest, 0.01 / 3 + rest, 0.18 / 64]
    found = [part.mean() for part in (*parts.seeds, parts.prompts)]
    assert np.allclose(found, expected, rtol=0.03)


def test_parts_of_pairs_are_unbiased_and_without_what_seeds_share():
    x, y = made_up(3, 64, batch=(20_000,))
    luck = DRAW.normal(size=(20_000, 3, 1))
    parts = components(x + luck, y + luck, paired=True)
    expected = [0.17 / 3 + 2 * 0.04 / 3 / 64, 0.18 / 64]
    assert np.allclose([part.mean() for part in (*parts.seeds, parts.prompts)], expected, rtol=0.03)


def benchmark():
    spec = importlib.util.spec_from_file_location("intervals_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def intervals():
    return benchmark()


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("name", ["no seed effect", "medium seed effects", "method's seeds 3 times as wide"])
def test_intervals_cover_and_false_alarms_are_few(intervals, name, seeds):
    scenario = next(s for s in intervals.SCENARIOS if s.name == name)
    rows = intervals.measure(scenario, seeds, 32, 2000, ("paired", "not paired"))
    for row in (rows["paired"], rows["not paired"]):
        assert 0.93 <= row["coverage"] <= 0.98 and 0.02 <= row["false_alarms"] <= 0.07
    assert 0.65 <= rows["paired"]["power"] <= 0.87  # predicted: 0.8


def test_pairs_show_what_shared_luck_hides(intervals):
    scenario = next(s for s in intervals.SCENARIOS if s.name == "seeds share nearly all luck")
    rows = intervals.measure(scenario, 5, 200, 1000, ("paired", "not paired"))
    assert 0.93 <= rows["paired"]["coverage"] <= 0.98 and rows["paired"]["width"] < rows["not paired"]["width"] / 2
    assert rows["paired"]["power"] > 0.7 and rows["not paired"]["power"] < 0.3


def test_intervals_cover_with_unequal_numbers_of_seeds(intervals):
    scenario = next(s for s in intervals.SCENARIOS if s.name == "method's seeds 3 times as wide")
    x, y = intervals.simulate(scenario, 5, 32, 0.0, 2000, np.random.default_rng(0))
    for method, baseline in ((x[:, :3], y), (x, y[:, :3])):
        low, high = difference(method, baseline, paired=False).interval()
        assert 0.93 <= np.mean((low <= 0) & (high >= 0)) <= 0.97


def test_other_intervals_are_too_narrow_for_new_prompts(intervals):
    scenario = next(s for s in intervals.SCENARIOS if s.name == "no seed effect, methods differ by prompt")
    names = ("paired", "not paired", "t over seeds", "t over paired seeds")
    row = intervals.measure(scenario, 10, 32, 500, names)
    assert row["paired"]["false_alarms"] < 0.08 and row["not paired"]["false_alarms"] < 0.08
    assert row["t over seeds"]["false_alarms"] > 0.3 and row["t over paired seeds"]["false_alarms"] > 0.3


def test_it_is_the_mixed_model_with_crossed_effects():
    """statsmodels 0.15.0, MixedLM by REML: v ~ cell, random prompt, cell-by-prompt and seed within cell.

    Equal numbers of seeds and no part below 0: the estimates of both are those of the analysis of variance.
    """
    draw, shape = np.random.RandomState(11), (3, 12)
    level = draw.normal(size=(1, 12))
    x, y = (
        level + g + 0.3 * draw.normal(size=(1, 12)) + 0.2 * draw.normal(size=(3, 1)) + 0.2 * draw.normal(size=shape)
        for g in (0.3, 0)
    )
    found = difference(x, y, paired=False)
    assert np.allclose([found.value, found.standard_error], [0.308692, 0.142607], rtol=1e-4)
