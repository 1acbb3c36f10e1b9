"""What holds for all metrics: weights of prompts, types, masks, errors."""

import itertools
import math
import warnings

import pytest
import torch
from builders_calibration import WITH_WEIGHTS, answers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrant.calibration import (
    best_of_n,
    confidence_weighted_vote,
    correctness_auc,
    majority_vote,
    perplexity_consistency,
    precision_coverage,
    reliability_curve,
    risk_coverage,
)
from calibrant.errors import CalibrantError

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@pytest.mark.parametrize("ties", [False, True])
def test_weights_are_repetition(name, ties):
    metric = WITH_WEIGHTS[name]
    p, correct, where = answers(ties=ties)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randint(0, 4, (3, 2, 40), generator=generator)
    found = metric(p, correct, where, prompt_weights=weights)
    assert found.shape == (3, 2) and found.unique().numel() > 1
    for i, j in itertools.product(range(3), range(2)):
        again = (x.repeat_interleave(weights[i, j], 0) for x in (p, correct, where))
        assert found[i, j].item() == pytest.approx(metric(*again).item(), abs=1e-12)
    once = metric(p, correct, where, prompt_weights=torch.ones(40, dtype=torch.int32))
    assert once.item() == pytest.approx(metric(p, correct, where).item(), abs=1e-12)
    assert torch.isfinite(metric(p, correct, where, prompt_weights=torch.zeros(1, 40).long())).all()


def test_weights_many_at_a_time_are_one_at_a_time():
    p, correct, where = answers(n=900, g=4)
    weights = torch.randint(0, 3, (400, 900), generator=torch.Generator().manual_seed(0))
    for metric in WITH_WEIGHTS.values():
        found = metric(p, correct, where, prompt_weights=weights)
        for r in (0, 71, 72, 73, 290, 399):
            alone = metric(p, correct, where, prompt_weights=weights[r])
            assert found[r].item() == pytest.approx(alone.item(), abs=1e-12)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_are_checked(name):
    p, correct, _ = answers()
    for bad, message in [
        (torch.ones(39).long(), r"N = 40 prompts, got \[39\]"),
        (torch.ones(40), "integers of at least 0"),
        (-torch.ones(40).long(), "integers of at least 0"),
    ]:
        with pytest.raises(CalibrantError, match=message):
            WITH_WEIGHTS[name](p, correct, prompt_weights=bad)


ALL = {
    **WITH_WEIGHTS,
    "curve": lambda p, y, w=None: precision_coverage(p, y, w).precision,
    "risk": lambda p, y, w=None: risk_coverage(p, y, w, coverages=[0.5, 1]).risk,
    "bins": lambda p, y, w=None: reliability_curve(p, y, w, binning="equal_mass").confidence,
    "majority": lambda p, y, w=None: majority_vote((p.nan_to_num(0) * 3).long(), w, correct=y).support,
    "weighted": lambda p, y, w=None: confidence_weighted_vote((p.nan_to_num(0) * 3).long(), p, w, correct=y).support,
    "perplexity": lambda p, y, w=None: (
        perplexity_consistency((p.nan_to_num(0) * 3).long(), -p, (p.nan_to_num(0) * 9).long(), w, correct=y).support
    ),
    "best": lambda p, y, w=None: best_of_n(p, w, correct=y).accuracy,
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types(name, dtype):
    p, correct, where = answers(dtype=dtype)
    found = ALL[name](p, correct if name == "pass" else correct.to(dtype), where)
    assert found.dtype == (torch.float32 if name == "majority" else torch.float64 if name == "pass" else dtype)
    exact = ALL[name](p.double(), correct, where)
    torch.testing.assert_close(found.double(), exact.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)
@given(st.data())
def test_always_finite_and_in_range(name, data):
    n, g = data.draw(st.integers(0, 4)), data.draw(st.integers(2, 4))
    numbers = st.one_of(st.floats(0, 1), st.sampled_from([NAN, 0.0, 1.0, 0.5]))
    p = torch.tensor(data.draw(st.lists(numbers, min_size=n * g, max_size=n * g)), dtype=torch.float64).reshape(n, g)
    labels = st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=n * g, max_size=n * g)
    correct = torch.tensor(data.draw(labels), dtype=torch.float64).reshape(n, g)
    flags = st.lists(st.booleans(), min_size=n * g, max_size=n * g)
    where = torch.tensor(data.draw(flags), dtype=torch.bool).reshape(n, g)
    found = ALL[name](p, correct, where)
    assert torch.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()
    hidden = torch.where(where, p, torch.tensor(0.123, dtype=torch.float64))  # masked is dropped
    assert torch.equal(ALL[name](hidden, correct, where), found)


@pytest.mark.parametrize("name", ALL)
def test_order_of_prompts_does_not_matter(name):
    p, correct, where = answers(ties=True)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    found, again = ALL[name](p, correct, where), ALL[name](p[order], correct[order], where[order])
    again = again.new_zeros(40).scatter(0, order, again) if found.shape == (40,) else again
    torch.testing.assert_close(found, again, rtol=1e-12, atol=1e-12)


def test_correctness_is_not_a_reward():
    p = torch.rand(2, 3)
    for name in ALL:
        with pytest.raises(CalibrantError, match=r"correct has to be 0 or 1 .* got 0.7"):
            ALL[name](p, torch.full((2, 3), 0.7))


def test_shapes_are_checked():
    p, y = torch.rand(2, 3), torch.ones(2, 3)
    for name in set(ALL) - {"pass", "majority", "weighted", "perplexity", "bins"}:
        with pytest.raises(CalibrantError, match="G is 3 in"):
            ALL[name](p, torch.ones(2, 4))
        with pytest.raises(CalibrantError, match="has 3 axes"):
            ALL[name](p[None], y[None])
    for name in ALL:
        with pytest.raises(CalibrantError, match="where has to be a boolean mask"):
            ALL[name](p, y, torch.ones(2, 3))
    with pytest.raises(CalibrantError, match="clusters have to be integers"):
        majority_vote(p)
    with pytest.raises(CalibrantError, match="perplexity_consistency, text_ids"):
        perplexity_consistency(y.long(), -p, p)
    with pytest.raises(CalibrantError, match="text_ids"):
        perplexity_consistency(y.long(), -p, torch.ones(2, 4).long())
    with pytest.raises(CalibrantError, match="pooling has to be one of 'pooled', 'per_prompt', got 'mean'"):
        correctness_auc(p, y, pooling="mean")


def test_nothing_is_differentiated_and_nothing_is_warned_of():
    p, correct, where = answers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in ALL.values():
            assert not function(p.clone().requires_grad_(), correct, where).requires_grad
