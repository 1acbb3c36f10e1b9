"""Precision and risk against coverage."""

import itertools
import math

import pytest
import torch
from builders_calibration import answers, kept
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrant.calibration import (
    precision_coverage,
    risk_coverage,
)
from calibrant.errors import CalibrantError

NAN, INF = math.nan, math.inf


def expected_precisions(p, y):
    """Mean over all orders that confidence allows, by enumeration."""
    orders = [o for o in itertools.permutations(range(len(p))) if all(p[a] >= p[b] for a, b in itertools.pairwise(o))]
    return [sum(sum(y[i] for i in o[:k]) / k for o in orders) / len(orders) for k in range(1, len(p) + 1)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.7, INF]), st.booleans()), min_size=1, max_size=6))
def test_ties_are_expectations(rows):
    p, y = zip(*rows, strict=True)
    curve = precision_coverage(torch.tensor([p], dtype=torch.float64), torch.tensor([y]))
    expected = expected_precisions(p, y)
    assert curve.precision.tolist() == pytest.approx(expected, abs=1e-12)
    assert curve.coverage.tolist() == pytest.approx([k / len(p) for k in range(1, len(p) + 1)])
    assert curve.area.item() == pytest.approx(sum(expected) / len(p), abs=1e-12)
    assert curve.random_area.item() == pytest.approx(sum(y) / len(p))
    ideal = expected_precisions([float(v) for v in y], y)
    assert curve.oracle_area.item() == pytest.approx(sum(ideal) / len(p), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_curve_is_the_sorted_loop_and_the_area_its_mean(ties):
    p, correct, where = answers(ties=ties)
    values, labels = kept(p, correct, where)
    curve = precision_coverage(p, correct, where)
    assert curve.area.item() == pytest.approx(curve.precision.mean().item(), abs=1e-13)
    if not ties:
        ordered = [y for _, y in sorted(zip(values, labels, strict=True), reverse=True)]
        loop = [sum(ordered[:k]) / k for k in range(1, len(ordered) + 1)]
        assert curve.precision.tolist() == pytest.approx(loop, abs=1e-13)


def test_perfect_random_and_inverted_areas():
    right = torch.arange(1000).reshape(100, 10) < 700
    n, m = 1000, 700
    harmonic = [math.fsum(1 / k for k in range(1, j + 1)) for j in range(n + 1)]
    perfect = precision_coverage(right.double(), right)
    best = (m + m * (harmonic[n] - harmonic[m])) / n
    assert perfect.area.item() == pytest.approx(best, abs=1e-12) == perfect.oracle_area.item()
    assert perfect.area.item() == pytest.approx(0.7 - 0.7 * math.log(0.7), abs=1e-3)
    assert perfect.excess_over_oracle.item() == pytest.approx(0.0, abs=1e-12)
    inverted = precision_coverage(-right.double(), right)
    worst = sum((k - (n - m)) / k for k in range(n - m + 1, n + 1)) / n
    assert inverted.area.item() == pytest.approx(worst, abs=1e-12) and inverted.excess_over_random < 0
    constant = precision_coverage(torch.zeros(100, 10, dtype=torch.float64), right)
    assert (constant.precision - 0.7).abs().max() < 1e-15
    assert constant.area.item() == pytest.approx(0.7, abs=1e-12) == constant.random_area.item()
    assert constant.excess_over_random.item() == pytest.approx(0.0, abs=1e-12)


def test_a_model_that_is_always_right_has_exactly_one():
    for n in (1, 3, 20, 997):
        curve = precision_coverage(torch.rand(n, 1, dtype=torch.float64), torch.ones(n, 1))
        assert curve.area == 1.0 == curve.oracle_area == curve.random_area and (curve.precision == 1).all()
        curve = precision_coverage(torch.rand(n, 1, dtype=torch.float64), torch.zeros(n, 1))
        assert curve.area == 0.0 == curve.oracle_area == curve.random_area and (curve.precision == 0).all()


def test_coverages_round_up():
    p, y = torch.arange(10, 0, -1.0).reshape(2, 5).double(), torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1]])
    # k = 1 (of .01 and of .1), 2 (of .11 and of .2), 3, 7 (0.7 * 10 is 7.000000000000001 in places), 10
    curve = precision_coverage(p, y, coverages=[0.01, 0.1, 0.11, 0.2, 0.3, 0.7, 1.0])
    assert curve.precision.tolist() == pytest.approx([1, 1, 1, 1, 2 / 3, 3 / 7, 4 / 10])
    assert curve.coverage.tolist() == [0.01, 0.1, 0.11, 0.2, 0.3, 0.7, 1.0]
    assert curve.area == precision_coverage(p, y).area
    for n in (10, 30, 70, 300, 980):
        p, y = torch.arange(n)[:, None], torch.rand(n, 1) > 0.5
        every = precision_coverage(p, y, coverages=[k / n for k in range(1, n + 1)])
        assert torch.equal(every.precision, precision_coverage(p, y).precision)
    for bad in ([0.0], [1.1], [0.5, NAN], 0.5):
        with pytest.raises(CalibrantError, match="coverages have to be a list of numbers in"):
            precision_coverage(p, y, coverages=bad)


def test_risk_is_one_minus_precision():
    p, correct, where = answers(ties=True)
    curve, risk = precision_coverage(p, correct, where), risk_coverage(p, correct, where)
    assert torch.equal(risk.risk, 1 - curve.precision) and torch.equal(risk.coverage, curve.coverage)
    assert risk.aurc == 1 - curve.area and risk.oracle_aurc == 1 - curve.oracle_area
    assert risk.excess_aurc.item() == pytest.approx((risk.aurc - risk.oracle_aurc).item()) and risk.excess_aurc > 0
    assert len(risk_coverage(p, correct, where, coverages=[0.5]).risk) == 1
