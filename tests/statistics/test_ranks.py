"""Rank correlation, areas under curves and the precision of the top share."""

import itertools
import math
import warnings
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from builders_statistics import signals_and_target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from calibrant.errors import CalibrantError
from calibrant.statistics import (
    auc,
    precision_at,
    spearman,
    top_labels,
)
from calibrant.statistics.correlation import two_sided_p
from calibrant.statistics.ranks import mid_ranks

NAN, INF = math.nan, math.inf


def pairs(score, label):
    found = [(a > b) + 0.5 * (a == b) for a, s in zip(score, label, strict=True) if s
             for b, t in zip(score, label, strict=True) if not t]  # fmt: skip
    return sum(found) / len(found) if found else 0.5


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
