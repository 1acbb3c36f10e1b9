"""Held-out fits, outliers and the whole protocol of an association."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from builders_statistics import signals_and_target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

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

NAN, INF = math.nan, math.inf


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
