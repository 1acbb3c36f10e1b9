"""Percentiles and the paired bootstrap."""

import math

import numpy as np
import pytest
import torch
from builders_statistics import signals_and_target

from calibrant.errors import CalibrantError
from calibrant.statistics import (
    auc,
    paired_bootstrap,
    precision_at,
    spearman,
    top_labels,
)
from calibrant.statistics.resampling import percentiles

NAN, INF = math.nan, math.inf


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
