"""What holds for all statistics: masks, types, ranges, errors."""

import math

import pytest
import torch
from builders_statistics import signals_and_target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.statistics import (
    auc,
    precision_at,
    spearman,
)

NAN, INF = math.nan, math.inf
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
