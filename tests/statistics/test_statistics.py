import itertools
import math
import warnings
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from calibrant.errors import CalibrantError
from calibrant.statistics import (
    association,
    auc,
    cross_validated_fit,
    paired_bootstrap,
    precision_at,
    spearman,
    top_labels,
    without_outliers,
)
from calibrant.statistics.ranks import mid_ranks
from calibrant.statistics.resampling import percentiles
from calibrant.statistics.student import two_sided_p

NAN, INF = math.nan, math.inf


def signals_and_target(s=3, n=200, seed=0, ties=False, dtype=torch.float64):
    """Signals of falling quality and a skewed positive target."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, generator=generator, dtype=torch.float64)
    noise = torch.randn(s, n, generator=generator, dtype=torch.float64)
    x = hidden + noise * torch.arange(1, s + 1)[:, None]
    if ties:
        x = x.round()
    return x.to(dtype), hidden.exp().to(dtype)


def pairs(score, label):
    found = [(a > b) + 0.5 * (a == b) for a, s in zip(score, label, strict=True) if s
             for b, t in zip(score, label, strict=True) if not t]  # fmt: skip
    return sum(found) / len(found) if found else 0.5


# ---- rank correlation


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_scipys(ties):
    for n, seed in itertools.product([3, 4, 5, 10, 50, 1000], range(4)):
        x, y = signals_and_target(n=n, seed=seed, ties=ties)
        rho, p = spearman(x, y)
        for i in range(3):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = scipy.stats.spearmanr(x[i].numpy(), y.numpy())
            if math.isnan(expected.statistic):
                assert (rho[i], p[i]) == (0, 1)
                continue
            assert rho[i].item() == pytest.approx(expected.statistic, abs=1e-14)
            assert p[i].item() == pytest.approx(expected.pvalue, rel=1e-10, abs=1e-300 if n > 5 else 1e-15)


@pytest.mark.parametrize("n", [3, 4, 5, 7, 20, 42, 43, 100, 980, 10_000, 1_000_000])
def test_p_values_from_certainty_to_the_smallest_number(n):
    rho = torch.tensor([0, 1e-9, 1e-4, 0.003, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999999], dtype=torch.float64)
    found = two_sided_p(torch.cat([rho, -rho]), torch.full((24,), n))
    r = rho.numpy()
    t = r * np.sqrt((n - 2) / ((1 - r) * (1 + r)))
    expected = 2 * scipy.stats.t.sf(t, n - 2)
    assert np.allclose(found[:12].numpy(), expected, rtol=1e-10, atol=1e-9 if n == 3 else 0)  # scipy's n = 3 is coarse
    assert torch.equal(found[:12], found[12:]) and ((found >= 0) & (found <= 1)).all() and found[0] == 1
    assert (found[:12].diff() <= 0).all()
    assert two_sided_p(torch.tensor([1.0, -1.0]), torch.tensor([n, n])).tolist() == [0, 0]


def test_p_value_by_hand():
    # three pairs: T of one degree of freedom is Cauchy, p = 1 - 2/pi atan(t) with t = tan(asin(rho))
    rho = torch.tensor([0.5, 0.25, 1e-9], dtype=torch.float64)
    expected = [1 - 2 / math.pi * math.asin(r) for r in rho.tolist()]
    assert two_sided_p(rho, torch.full((3,), 3)).tolist() == pytest.approx(expected, rel=1e-13)
    # four: two degrees of freedom, p = 1 - rho
    assert two_sided_p(rho, torch.full((3,), 4)).tolist() == pytest.approx((1 - rho).tolist(), rel=1e-13)
    assert two_sided_p(rho, torch.tensor([2, 1, 0])).tolist() == [1, 1, 1]


def test_published_p_values_can_be_those_of_student():
    # GCPO's table 4, OlympiadBench: .165 has p < .001, .136 and .147 have .001 to .05, -.066 has more
    rho = torch.tensor([0.165, 0.136, 0.147, -0.066], dtype=torch.float64)
    for n, possible in [(380, False), (400, True), (490, True), (520, False)]:
        a, b, c, d = two_sided_p(rho, torch.full((4,), n)).tolist()
        assert (a < 0.001 <= min(b, c) and max(b, c) < 0.05 < d) is possible


def test_spearman_by_hand_and_the_formula_without_ties():
    # differences of ranks 0, 1, 1, 0: 1 - 6 * 2 / (4 * 15) = 0.8
    x, y = torch.tensor([10.0, 20.0, 30.0, 40.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    assert spearman(x, y).rho.item() == pytest.approx(0.8)
    generator = torch.Generator().manual_seed(0)
    for n in (5, 60):
        a, b = (torch.randperm(n, generator=generator) for _ in range(2))
        formula = 1 - 6 * (a - b).square().sum().item() / (n * (n * n - 1))
        assert spearman(a.double(), b.double()).rho.item() == pytest.approx(formula, abs=1e-14)
    # mid-ranks 1.5 1.5 3 against 1 2 3: covariance 1.5, variances 1.5 and 2; the formula says 1 - 6 * 0.5 / 24 = 0.875
    tied = spearman(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0])).rho.item()
    assert tied == pytest.approx(1.5 / math.sqrt(3.0)) and abs(tied - 0.875) > 0.008


def test_spearman_of_perfect_inverted_and_constant():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert spearman(x, x.exp()) == (1, 0) and spearman(x, -x) == (-1, 0)
    for constant in (torch.zeros(50), torch.full((50,), 0.3)):
        assert spearman(x, constant) == (0, 1) == spearman(constant, x)
    assert spearman(x[:2], x[:2]) == (1, 1) and spearman(x[:1], x[:1]) == (0, 1) == spearman(x[:0], x[:0])
    assert spearman(torch.tensor([-INF, 0.0, INF]), torch.tensor([1.0, 2.0, 3.0])).rho == 1


def test_ranks_of_ties_and_signed_zeros():
    values = torch.tensor([3.0, -0.0, 3.0, 0.0, 3.0, 1.0, INF, NAN])
    mask = torch.tensor([True] * 6 + [True, False])
    assert mid_ranks(values, mask).tolist() == [5, 1.5, 5, 1.5, 5, 3, 7, 0]
    assert mid_ranks(values, mask).dtype == torch.float64


# ---- retrieval


def test_auc_is_the_pairs_and_scikit_learns():
    for seed in range(4):
        x, y = signals_and_target(seed=seed, ties=seed % 2 == 0)
        label = y > 1.5
        found = auc(x, label)
        for i in range(3):
            assert found[i].item() == pairs(x[i].tolist(), label.tolist())
            assert found[i].item() == pytest.approx(roc_auc_score(label.numpy(), x[i].numpy()), abs=1e-14)
        assert torch.equal(auc(x, label.double()), found) and torch.equal(auc(x, label.int()), found)
        torch.testing.assert_close(auc(-x, label), 1 - found)
    assert auc(x, torch.zeros(200)).tolist() == [0.5] * 3 and auc(label.double(), label) == 1
    assert auc(torch.zeros(200), label) == 0.5 and auc(torch.zeros(0), torch.zeros(0)) == 0.5
    with pytest.raises(CalibrantError, match=r"auc: label has to be 0 or 1 .* got 0.5"):
        auc(x, label * 0.5)


def test_top_labels_by_hand():
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    for share, size in [(0.1, 1), (0.11, 2), (0.2, 2), (0.5, 5), (0.01, 1)]:
        assert top_labels(values, share).sum() == size and (top_labels(values, share) == (values > 5 - size)).all()
    # at 0.6 the five zeros are in as a whole (10 instead of 6) or out (5): out is nearer
    assert top_labels(values, 0.6).sum() == 5 and top_labels(values, 0.8).sum() == 10
    # halfway: in; nothing above the tie: in
    assert (
        top_labels(torch.tensor([1.0, 0.0, 0.0]), 0.5).all()
        and top_labels(torch.tensor([2.0, 0, 0, 0, 0]), 0.6).sum() == 5
    )
    assert top_labels(torch.tensor([1.0, 1.0, 1.0]), 0.1).all()
    where = torch.tensor([False] + [True] * 9)
    assert top_labels(torch.where(where, values, INF), 0.1, where).nonzero().tolist() == [[2]]
    assert top_labels(torch.tensor([NAN, 1.0]), 0.5).tolist() == [False, True]
    assert top_labels(torch.rand(980, dtype=torch.float64)).sum() == 98
    assert top_labels(torch.arange(100), 0.07).sum() == 7  # 0.07 * 100 is 7.000000000000001


def slow_precision(score, target, share):
    """Mean over all orders that both allow, by enumeration."""
    size = math.ceil(share * len(score) - 1e-9)

    def tops(values):
        orders = itertools.permutations(range(len(values)))
        return [set(o[:size]) for o in orders if all(values[a] >= values[b] for a, b in itertools.pairwise(o))]

    first, second = tops(score), tops(target)
    return sum(len(a & b) for a in first for b in second) / len(first) / len(second) / size


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=5), st.sampled_from([0.1, 0.4, 0.6])
)
def test_precision_is_the_expectation_over_ties(rows, share):
    score, target = zip(*rows, strict=True)
    found = precision_at(torch.tensor(score), torch.tensor(target), share)
    assert found.item() == pytest.approx(slow_precision(score, target, share), abs=1e-6)


def test_precision_by_hand():
    target = torch.arange(980.0)
    assert precision_at(target, target) == 1 and precision_at(-target, target) == 0
    assert precision_at(torch.zeros(980), target).item() == pytest.approx(0.1)
    score = target.clone()
    score[-49:] = -1.0  # half of the 98 are not found
    assert precision_at(score, target) == 0.5
    overlap = len(set(range(900, 980)) & set(range(882, 980)))
    assert precision_at((target >= 900) * target + (target < 18) * 2000.0, target).item() == pytest.approx(overlap / 98)
    assert precision_at(torch.full((4,), NAN), torch.zeros(4)) == 0
    for bad in (0, 1, 10, NAN, True):
        for function in (top_labels, partial(precision_at, target)):
            with pytest.raises(CalibrantError, match="share has to be a number between 0 and 1"):
                function(target, bad)


# ---- masks, batches, types

FUNCTIONS = {
    "rho": lambda x, y, w=None: spearman(x, y, w).rho,
    "p": lambda x, y, w=None: spearman(x, y, w).p,
    "auc": lambda x, y, w=None: auc(x, torch.where(y.isnan(), y, (y > 1).to(y.dtype)), w),
    "precision": lambda x, y, w=None: precision_at(x, y, 0.2, w),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_masked_is_dropped(name):
    function = FUNCTIONS[name]
    x, y = signals_and_target(s=4, n=60, ties=True)
    generator = torch.Generator().manual_seed(0)
    where = torch.rand(4, 60, generator=generator) < 0.7
    x[torch.rand(4, 60, generator=generator) < 0.1] = NAN
    y[torch.rand(60, generator=generator) < 0.1] = NAN
    found = function(x, y, where)
    assert found.shape == (4,)
    for i in range(4):
        mask = where[i] & ~x[i].isnan() & ~y.isnan()
        assert found[i].item() == pytest.approx(function(x[i, mask], y[mask]).item(), abs=1e-13)
    again = function(x[:, None], y.expand(1, 1, 1, 60), where[:, None])
    assert again.shape == (1, 4, 1) and torch.equal(again[0, :, 0], found)
    shared = function(x, y, where[0])
    assert shared[0].item() == pytest.approx(found[0].item(), rel=1e-12)
    order = torch.randperm(60, generator=generator)
    torch.testing.assert_close(function(x[:, order], y[order], where[:, order]), found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types(name, dtype):
    x, y = signals_and_target(dtype=dtype)
    found = FUNCTIONS[name](x, y)
    assert found.dtype == dtype and not FUNCTIONS[name](x.requires_grad_(), y).requires_grad
    exact = FUNCTIONS[name](x.detach().double(), y.double())
    torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    assert FUNCTIONS[name](torch.arange(5), torch.arange(5)).dtype == torch.float32


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(st.data())
def test_always_finite_and_in_range(name, data):
    n = data.draw(st.integers(0, 7))
    numbers = st.lists(st.one_of(st.floats(), st.sampled_from([0.0, 1.0, NAN, INF])), min_size=n, max_size=n)
    x, y = (torch.tensor(data.draw(numbers), dtype=torch.float64) for _ in range(2))
    where = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
    found = FUNCTIONS[name](x, y, where)
    assert torch.isfinite(found) and (-1 if name == "rho" else 0) <= found <= 1


def test_lengths_and_masks_are_checked():
    for function in FUNCTIONS.values():
        with pytest.raises(CalibrantError, match=r"of one length \[..., N\], got .* \[3\] and .* \[4\]"):
            function(torch.rand(3), torch.rand(4))
        with pytest.raises(CalibrantError, match=r"got .* \[2, 4\] and .* \[3, 4\]"):
            function(torch.rand(2, 4), torch.rand(3, 4))
        with pytest.raises(CalibrantError, match="where has to be a boolean mask"):
            function(torch.rand(3), torch.rand(3), torch.ones(3))
        with pytest.raises(CalibrantError, match="axes"):
            function(torch.tensor(1.0), torch.tensor(1.0))


# ---- paired bootstrap


def test_percentiles_are_numpys_without_nan():
    values = torch.randn(31, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[torch.rand(31, 4, generator=torch.Generator().manual_seed(1)) < 0.4] = NAN
    values[0], values[1:, 3] = -INF, NAN
    found = percentiles(values, (0.0, 0.025, 0.5, 0.9, 1.0))
    with np.errstate(invalid="ignore"):
        expected = np.nanquantile(values.numpy(), [0.0, 0.025, 0.5, 0.9, 1.0], axis=0)
    finite = np.isfinite(expected)
    assert np.allclose(found.numpy()[finite], expected[finite], atol=1e-14) and finite.sum() >= 9
    assert (found[:, 3] == -INF).all() and percentiles(values[:0], (0.5,)).isnan().all()


def quantiles(values):
    return np.nanquantile(values, [0.05, 0.95], axis=0)


@pytest.mark.parametrize("name", ["spearman", "auc", "precision_at", "own"])
def test_paired_bootstrap_is_the_loop(name):
    x, y = signals_and_target(n=40, ties=True)
    y = top_labels(y, 0.3).double() if name == "auc" else y
    statistic = {
        "spearman": lambda a, b: spearman(a, b).rho,
        "auc": auc,
        "precision_at": precision_at,
        "own": lambda a, b: (a - b).abs().mean(-1),
    }[name]
    found = paired_bootstrap(x, y, statistic if name == "own" else name, resamples=50, level=0.9,
                             generator=torch.Generator().manual_seed(1))  # fmt: skip
    rows = torch.randint(0, 40, (50, 40), generator=torch.Generator().manual_seed(1))
    loop = np.array([[statistic(x[i, r], y[r]).item() for i in range(3)] for r in rows])
    value = np.array([statistic(x[i], y).item() for i in range(3)])
    difference = loop[:, :, None] - loop[:, None, :]
    smaller = np.minimum((difference <= 0).sum(0), (difference >= 0).sum(0))
    expected = [value, *quantiles(loop), value[:, None] - value, *quantiles(difference)]
    for a, b in zip(found[:-1], expected, strict=True):
        assert np.allclose(a.numpy(), b, atol=1e-12)
    assert np.allclose(found.p.numpy(), np.minimum(1, 2 * (1 + smaller) / 51))
    assert (found.p.diagonal() == 1).all() and torch.equal(found.difference, -found.difference.T)


def test_paired_bootstrap_tells_signals_apart():
    x, y = signals_and_target(n=500)
    x = torch.stack([y, x[0], x[2], x[2]])
    found = paired_bootstrap(x, y, resamples=500)
    assert found.value[0] == 1 and (found.difference_low[0, 1:] > 0).all() and found.p[0, 2].item() == 2 / 501
    assert found.p[2, 3] == 1 and found.difference_low[2, 3] == found.difference_high[2, 3] == 0
    assert found.difference_low[1, 2] > 0 and torch.allclose(found.difference_low, -found.difference_high.T)
    # the difference of two alike signals is much better known than either
    y2 = y + 0.01 * torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close = paired_bootstrap(torch.stack([x[1], x[1] + 0.01 * y2]), y, resamples=300)
    width = close.high - close.low
    assert (close.difference_high - close.difference_low)[0, 1] < 0.2 * width[0]


def test_paired_bootstrap_under_no_difference_is_not_significant_too_often():
    rejected = 0
    for seed in range(60):
        x = torch.randn(3, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rejected += paired_bootstrap(x[:2], x[2], resamples=100).p[0, 1].item() < 0.05
    assert rejected <= 9  # expected 3; 10 or more have probability 1e-3


def test_paired_bootstrap_drops_prompts_for_all_signals_and_undefined_replicates():
    x, y = signals_and_target(n=30)
    holes, target = x.clone(), y.clone()
    holes[1, 4] = target[7] = NAN
    where = torch.arange(30) != 9
    left = [i for i in range(30) if i not in (4, 7, 9)]
    for a, b in zip(
        paired_bootstrap(holes, target, where=where, resamples=20), paired_bootstrap(x[:, left], y[left], resamples=20),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(a, b)
    label = torch.tensor([1.0, 0.0, 0.0])
    found = paired_bootstrap(torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), label, "auc", resamples=200)
    assert found.low.tolist() == [1, 0] and found.high.tolist() == [1, 0] and found.difference_low[0, 1] == 1
    constant = paired_bootstrap(torch.zeros(2, 5), torch.arange(5.0), resamples=5)
    assert all(torch.isfinite(a).all() for a in constant) and (constant.p == 1).all() and (constant.value == 0).all()
    assert (paired_bootstrap(torch.zeros(2, 5), torch.ones(5), "auc", resamples=5).value == 0.5).all()


def test_paired_bootstrap_is_private_and_checked():
    x, y = signals_and_target(n=20, dtype=torch.float32)
    state = torch.random.get_rng_state()
    first, second = (paired_bootstrap(x, y, resamples=20) for _ in range(2))
    other = paired_bootstrap(x, y, resamples=20, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and not torch.equal(first.low, other.low)
    assert torch.equal(torch.random.get_rng_state(), state) and all(a.dtype == torch.float32 for a in first)
    for call, message in [
        (lambda: paired_bootstrap(x, y, "spearmann"), "no statistic is named 'spearmann' .did you mean 'spearman'"),
        (lambda: paired_bootstrap(x, y, "auc"), "target has to be 0 or 1"),
        (lambda: paired_bootstrap(x[0], y), "signals has 1 axes instead of 2"),
        (lambda: paired_bootstrap(x, y[:5]), "N is 20 in signals and 5 in target"),
        (lambda: paired_bootstrap(x, y * NAN), "no prompt is left"),
        (lambda: paired_bootstrap(x, y, resamples=0), "resamples"),
        (lambda: paired_bootstrap(x, y, level=1.0), "level"),
    ]:
        with pytest.raises(CalibrantError, match=message):
            call()


# ---- held-out fits


def folds_of(n, folds, seed):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    number = np.empty(n, dtype=int)
    number[order.numpy()] = np.arange(n) % folds
    return number


@pytest.mark.parametrize("joint", [False, True])
def test_fits_are_scikit_learns(joint):
    x, y = signals_and_target(n=83, ties=True)
    found = cross_validated_fit(x, y, 5, joint=joint, generator=torch.Generator().manual_seed(2))
    number = folds_of(83, 5, 2)
    designs = [x.T.numpy()] if joint else [row[:, None].numpy() for row in x]
    for i, design in enumerate(designs):
        mae, rho, base, prediction = [], [], [], np.zeros(83)
        for f in range(5):
            test = number == f
            fit = LinearRegression().fit(design[~test], y.numpy()[~test])
            prediction[test] = fit.predict(design[test])
            mae.append(np.abs(prediction[test] - y.numpy()[test]).mean())
            base.append(np.abs(y.numpy()[~test].mean() - y.numpy()[test]).mean())
            rho.append(scipy.stats.spearmanr(prediction[test], y.numpy()[test]).statistic)
        got = found if joint else type(found)(*(a if a.ndim == 0 else a[i] for a in found))
        assert got.fold_mae.tolist() == pytest.approx(mae, abs=1e-10) and got.mae.item() == pytest.approx(np.mean(mae))
        assert got.fold_spearman.tolist() == pytest.approx(rho, abs=1e-10)
        assert got.spearman.item() == pytest.approx(np.mean(rho), abs=1e-10)
        assert got.prediction.tolist() == pytest.approx(prediction.tolist(), abs=1e-10)
        assert got.baseline_mae.item() == pytest.approx(np.mean(base), abs=1e-12)


def test_fits_by_hand():
    u = torch.arange(12.0, dtype=torch.float64)
    exact = cross_validated_fit(u, 5 - 2 * u, 4)
    assert exact.mae < 1e-12 and exact.spearman == 1 and torch.allclose(exact.prediction, 5 - 2 * u)
    # of no use: the mean of the others, as the baseline
    flat = cross_validated_fit(torch.full((12,), 0.3, dtype=torch.float64), u, 3)
    assert flat.spearman == 0 and flat.mae.item() == pytest.approx(flat.baseline_mae.item())
    assert cross_validated_fit(u, torch.full((12,), 0.3, dtype=torch.float64)).spearman == 0
    # all but one target are equal: without that one nothing can be learnt, rounding of the mean included
    for n in range(20, 40):
        u, y = torch.rand(n, generator=torch.Generator().manual_seed(n)), torch.full((n,), 0.1)
        y[3] = 0.7
        spearmans = cross_validated_fit(u.double(), y.double()).fold_spearman
        assert (spearmans == 0).sum() == 5
    # leave one out of 0 and 6, and 12 predicted by the line
    two = cross_validated_fit(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 6.0, 0.0]), 3)
    assert sorted(two.fold_mae.tolist()) == pytest.approx([6.0, 12.0, 12.0], abs=1e-5)
    # a feature twice changes nothing
    x, y = signals_and_target()
    one, twice = (cross_validated_fit(x[[0] * k], y, joint=True) for k in (1, 2))
    assert one.mae.item() == pytest.approx(twice.mae.item()) and one.prediction.shape == (200,)


def test_units_do_not_matter_to_fits():
    x, y = signals_and_target()
    plain = cross_validated_fit(x, y)
    for shift, scale in [(0.0, 1e-150), (0.0, 1e200), (1e4, 1.0)]:
        moved = cross_validated_fit(x * scale + shift, y)
        torch.testing.assert_close(moved.prediction, plain.prediction, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(moved.spearman, plain.spearman)
    positive = x.abs() + 1  # sums of these times 1e307 are beyond float64
    torch.testing.assert_close(cross_validated_fit(positive * 1e307, y).mae, cross_validated_fit(positive, y).mae)
    torch.testing.assert_close(cross_validated_fit(x, y * 1e150).mae, plain.mae * 1e150)
    joint = cross_validated_fit(x * torch.tensor([[1e-9], [1.0], [1e9]]), y, joint=True)
    torch.testing.assert_close(joint.prediction, cross_validated_fit(x, y, joint=True).prediction)


def test_fits_leave_out_prompts_and_are_private_and_checked():
    x, y = signals_and_target(n=40)
    holes, target = x.clone(), y.clone()
    holes[1, 4], target[7], holes[0, 8] = NAN, INF, -INF
    left = [i for i in range(40) if i not in (4, 7, 8, 9)]
    state = torch.random.get_rng_state()
    found = cross_validated_fit(holes, target, where=torch.arange(40) != 9)
    dropped = cross_validated_fit(x[:, left], y[left])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found.fold_mae, dropped.fold_mae) and torch.equal(found.prediction[:, left], dropped.prediction)
    assert (found.prediction[:, [4, 7, 8, 9]] == 0).all()
    other = cross_validated_fit(x, y, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(other.fold_mae, cross_validated_fit(x, y).fold_mae)
    batch = cross_validated_fit(x[None], y)
    assert batch.mae.shape == (1, 3) and batch.prediction.shape == (1, 3, 40) and batch.fold_spearman.shape == (1, 3, 5)
    assert cross_validated_fit(x.half(), y.half()).mae.dtype == torch.float16
    for call, message in [
        (lambda: cross_validated_fit(x, y, 1), "folds has to be an integer of at least 2"),
        (lambda: cross_validated_fit(x[:, :4], y[:4]), "4 prompts count, fewer than the 5 folds"),
        (lambda: cross_validated_fit(x[0, :0], y[:0]), "0 prompts count, fewer than the 5 folds"),
        (lambda: cross_validated_fit(x[0], y, joint=True), r"takes signals \[P, N\], got \[40\]"),
        (lambda: cross_validated_fit(x, y[:5]), r"one length \[..., N\], got signal \[3, 40\] and target \[5\]"),
    ]:
        with pytest.raises(CalibrantError, match=message):
            call()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(st.lists(st.tuples(st.floats(), st.floats()), min_size=2, max_size=8), st.booleans())
def test_bootstraps_and_fits_are_finite(rows, joint):
    x, y = (torch.tensor(v, dtype=torch.float64) for v in zip(*rows, strict=True))
    if (torch.isfinite(x) & torch.isfinite(y)).sum() >= 2:
        assert all(torch.isfinite(a).all() for a in cross_validated_fit(x[None], y, 2, joint=joint))
    if (~x.isnan() & ~y.isnan()).any():
        assert all(torch.isfinite(a).all() for a in paired_bootstrap(torch.stack([x, -x]), y, resamples=3))


# ---- the protocol


def test_without_outliers():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    mask = without_outliers(values)
    assert mask.sum() == 980 and values[~mask].min() > values[mask].max()
    assert without_outliers(values, 0).all()
    where = values < 0.5
    mask = without_outliers(values, 3, where)
    assert mask.sum() == where.sum() - 3 and not mask[~where].any() and values[mask].max() < values[where & ~mask].min()
    rows = torch.tensor([[1.0, NAN, INF, 2.0], [4.0, 3.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    assert without_outliers(rows, 1).tolist() == [
        [True, False, False, True],
        [False, True, True, True],
        [True, True, True, False],
    ]
    assert not without_outliers(torch.full((3,), NAN), 0).any()
    for bad in (3, 4, -1, 1.0):
        with pytest.raises(CalibrantError, match="without_outliers"):
            without_outliers(rows, bad)


def test_association_is_its_parts():
    x, y = signals_and_target(s=4, n=300)
    x[2, 5] = NAN
    y[:20] *= 1000  # outliers
    found = association(x, y, resamples=30, generator=torch.Generator().manual_seed(0))
    kept = without_outliers(y, 20, torch.arange(300) != 5)
    assert torch.equal(found.kept, kept) and kept.sum() == 279
    a, b = x[:, kept], y[kept]
    label = top_labels(b)
    assert label.sum() == 28 and torch.equal(found.spearman.rho, spearman(a, b).rho)
    assert torch.equal(found.auc, auc(a, label)) and torch.equal(found.precision, precision_at(a, b))
    assert torch.equal(found.spearman_bootstrap.value, found.spearman.rho)
    assert torch.equal(found.auc_bootstrap.value, found.auc)
    generator = torch.Generator().manual_seed(0)
    for bootstrap, target, name in [(found.spearman_bootstrap, b, "spearman"), (found.auc_bootstrap, label, "auc")]:
        again = paired_bootstrap(a, target, name, resamples=30, generator=generator)
        assert torch.equal(again.difference_low, bootstrap.difference_low)
    assert torch.equal(found.fit.mae, cross_validated_fit(a, b, generator=generator).mae)
    loose = association(x, y, outliers=0, share=0.5, folds=3, resamples=5, level=0.5)
    assert loose.kept.sum() == 299 and loose.fit.fold_mae.shape == (4, 3)
    assert torch.equal(loose.auc, auc(x[:, loose.kept], top_labels(y[loose.kept], 0.5)))
    assert torch.equal(loose.precision, precision_at(x[:, loose.kept], y[loose.kept], 0.5))
    narrow, wide = (association(x, y, resamples=50, level=v).auc_bootstrap for v in (0.5, 0.95))
    assert ((narrow.high - narrow.low) < (wide.high - wide.low)).all()
