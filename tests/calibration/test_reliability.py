"""Reliability curves, calibration errors and the Brier score."""

import math

import pytest
import torch
from builders_calibration import answers, kept
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from calibrant.calibration import (
    brier,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_curve,
)
from calibrant.errors import CalibrantError

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_reliability_is_scikit_learns(binning):
    for seed, bins in [(0, 15), (1, 10), (2, 1), (3, 40)]:
        p, correct, where = answers(seed=seed)
        values, labels = kept(p, correct, where)
        strategy = {"equal_width": "uniform", "equal_mass": "quantile"}[binning]
        accuracy, confidence = calibration_curve(labels, values, n_bins=bins, strategy=strategy)
        curve = reliability_curve(p, correct, where, bins=bins, binning=binning)
        assert len(curve.edges) == bins + 1 and curve.counts.sum() == len(values)
        filled = curve.counts > 0
        assert curve.accuracy[filled].tolist() == pytest.approx(accuracy.tolist(), abs=1e-12)
        assert curve.confidence[filled].tolist() == pytest.approx(confidence.tolist(), abs=1e-12)
        gaps = abs(accuracy - confidence)
        expected = (gaps * curve.counts[filled].numpy()).sum() / len(values)
        options = {"bins": bins, "binning": binning}
        assert expected_calibration_error(p, correct, where, **options).item() == pytest.approx(expected, abs=1e-12)
        assert maximum_calibration_error(p, correct, where, **options).item() == pytest.approx(gaps.max(), abs=1e-12)
        assert brier(p, correct, where).item() == pytest.approx(brier_score_loss(labels, values), abs=1e-14)


def test_edges_belong_to_the_bin_below_and_zero_to_the_first():
    p = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0, 0.2501]], dtype=torch.float64)
    curve = reliability_curve(p, torch.ones(1, 6), bins=4)
    assert curve.counts.tolist() == [2, 2, 1, 1] and curve.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # three fifths of fifteen ninths: b / B is rounded once
    assert reliability_curve(p[:, :1] + 0.6, torch.ones(1, 1), bins=15).counts.nonzero().item() == 8


def test_equal_mass_has_equal_counts_and_keeps_ties_together():
    p = torch.rand(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert reliability_curve(p, p > 0.5, bins=10, binning="equal_mass").counts.tolist() == [12] * 10
    tied = torch.tensor([[0.3] * 7 + [0.9]])
    curve = reliability_curve(tied, torch.ones(1, 8), bins=4, binning="equal_mass")
    assert sorted(curve.counts.tolist()) == [0, 0, 1, 7]
    # the median of six .1, .2 and .3 is .1: no more than those six are at most that
    curve = reliability_curve(torch.tensor([[0.1] * 6 + [0.2, 0.3]]), torch.ones(1, 8), bins=2, binning="equal_mass")
    assert curve.counts.tolist() == [6, 2]


def test_calibrated_and_overconfident_by_hand():
    # four answers at 0.75 of which three are right; two at 0.5, one right: calibrated
    p, y = torch.tensor([[0.75] * 4 + [0.5] * 2]), torch.tensor([[1, 1, 1, 0, 1, 0]])
    assert expected_calibration_error(p, y) == 0.0 and maximum_calibration_error(p, y) == 0.0
    assert brier(p, y).item() == pytest.approx((3 * 0.0625 + 0.5625 + 2 * 0.25) / 6)
    # always sure, half right
    sure = torch.ones(1, 6), torch.tensor([[1, 0, 1, 0, 1, 0]])
    assert [f(*sure).item() for f in (expected_calibration_error, maximum_calibration_error, brier)] == [0.5] * 3
    # the bins decide: one bin hides that .2 is always right and .8 never
    p, y = torch.tensor([[0.25, 0.75]]), torch.tensor([[1, 0]])
    assert expected_calibration_error(p, y, bins=1) == 0.0 and expected_calibration_error(p, y, bins=2) == 0.75


def test_probabilities_and_bins_are_checked():
    y = torch.ones(1, 2)
    for function in (expected_calibration_error, maximum_calibration_error, brier, reliability_curve):
        for bad in (-0.5, 1.5, INF, -INF):
            with pytest.raises(CalibrantError, match=rf"{function.__name__}: a probability .* got {bad:g}"):
                function(torch.tensor([[0.5, bad]]), y)
            function(torch.tensor([[0.5, bad]]), y, torch.tensor([[True, False]]))  # not asked for
        function(torch.tensor([[0.5, 1 + 1e-7]]), y)
    rounded = torch.tensor([[1 + 5e-7, -5e-7]], dtype=torch.float64)
    assert brier(rounded, torch.tensor([[1, 0]])) == 0 == expected_calibration_error(rounded, torch.tensor([[1, 0]]))
    with pytest.raises(CalibrantError, match="binning has to be one of 'equal_width', 'equal_mass', got 'width'"):
        expected_calibration_error(y, y, binning="width")
    for bins in (0, -1, 2.0, True):
        with pytest.raises(CalibrantError, match="bins has to be an integer of at least 1"):
            maximum_calibration_error(y, y, bins=bins)
