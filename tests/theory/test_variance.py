"""The decomposition of the variance in examples/theory_bounds.py, and what holds for all of its functions."""

import math

import pytest
import torch
from builders_theory import close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from theory_bounds import (
    bound_slack,
    cosine_distances,
    dispersion_bound,
    entropy_bound,
    gini_bound,
    gini_impurity,
    largest_disagreement,
    lipschitz_squared,
    pairwise_variance,
    shannon_entropy,
    transport_bound,
    variance_decomposition,
)

from calibrant.errors import CalibrantError

NAN, INF = math.nan, math.inf


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.data())
def test_variance_is_intra_plus_inter(data):
    n, g, d = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    gradients = torch.randn(n, g, d, generator=generator, dtype=torch.float64) + 5
    clusters = torch.randint(-1, 2, (n, g), generator=generator)
    where = torch.rand(n, g, generator=generator) < 0.8
    found = variance_decomposition(gradients.masked_fill(~where[..., None], NAN), clusters, where)
    assert torch.allclose(found.total, found.intra + found.inter) and (torch.stack(found) >= 0).all()
    for i in range(n):
        x, c = gradients[i, where[i]], clusters[i, where[i]]
        if not len(x):
            assert all(part[i] == 0 for part in found)
            continue
        ids = c.unique().tolist()
        p = torch.tensor([(c == k).double().mean() for k in ids], dtype=torch.float64)
        mu = torch.stack([x[c == k].mean(0) for k in ids])
        intra = sum(p[j] * x[c == k].var(0, correction=0).sum() for j, k in enumerate(ids))
        assert close(found.total[i], x.var(0, correction=0).sum(), 1) and close(found.intra[i], intra, 1)
        assert close(found.inter[i], pairwise_variance(p, mu), 1)
        square = x.square().sum(-1).mean() - x.mean(0).square().sum()
        assert close(found.total[i], square, 100)  # mean |g|^2 - |mean g|^2


def test_decomposition_by_hand():
    # clusters {0, 2} and {6}: mean 8/3; within 2/3 * 1; between 2/3 (8/3 - 1)^2 + 1/3 (6 - 8/3)^2 = 50/9
    parts = variance_decomposition(torch.tensor([[0.0], [2.0], [6.0]], dtype=torch.float64), torch.tensor([4, 4, 9]))
    assert [x.item() for x in parts] == pytest.approx([56 / 9, 2 / 3, 50 / 9])
    one = variance_decomposition(torch.tensor([[0.0], [2.0], [6.0]]), torch.zeros(3).long())
    assert one.inter == 0 and one.intra == one.total
    each = variance_decomposition(torch.tensor([[0.0], [2.0], [6.0]]), torch.arange(3))
    assert each.intra == 0 and each.inter == each.total
    none = variance_decomposition(torch.ones(2, 3, 1), torch.zeros(2, 3).long(), torch.zeros(2, 3).bool())
    assert [x.tolist() for x in none] == [[0, 0]] * 3


def test_batches_are_loops_and_types_stay():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    p, means = p / p.sum(-1, keepdim=True), torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    delta = largest_disagreement(means)
    for function in (
        lambda p, m, d: gini_impurity(p),
        lambda p, m, d: shannon_entropy(p),
        lambda p, m, d: pairwise_variance(p, m),
        lambda p, m, d: largest_disagreement(m),
        lambda p, m, d: gini_bound(p, d),
        lambda p, m, d: entropy_bound(p, d),
        lambda p, m, d: bound_slack(p, m, d),
        lambda p, m, d: bound_slack(p, m),
        lambda p, m, d: lipschitz_squared(m, m),
        lambda p, m, d: dispersion_bound(p, m, 2.0),
        lambda p, m, d: transport_bound(p, m, 2.0),
    ):
        found = function(p, means, delta)
        assert found.shape == (2, 3) and found.dtype == torch.float64
        for i in range(2):
            for j in range(3):
                assert close(found[i, j], function(p[i, j], means[i, j], delta[i, j]), 1)
        low = function(p.half(), means.half(), delta.half() * 1.01)
        assert low.dtype == torch.float16
        torch.testing.assert_close(low.double(), found, rtol=0.02, atol=0.2)
        assert not function(p.clone().requires_grad_(), means.clone().requires_grad_(), delta).requires_grad
        assert function(p[:0], means[:0], delta[:0]).shape == (0, 3)
    assert variance_decomposition(means, torch.zeros(2, 3, 4).long()).total.shape == (2, 3)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.lists(st.floats(), min_size=4, max_size=4), st.integers(0, 1))
def test_finite_for_every_gradient(values, cluster):
    means = torch.tensor(values, dtype=torch.float64).reshape(2, 2)
    p, e = torch.tensor([0.25, 0.75], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    parts = variance_decomposition(means, torch.tensor([0, cluster]))
    found = [pairwise_variance(p, means), largest_disagreement(means), bound_slack(p, means), *parts]
    found += [lipschitz_squared(means, e), lipschitz_squared(means, torch.ones(2, 2)), gini_bound(p, found[1])]
    assert all(torch.isfinite(x) and x >= 0 for x in found)


def test_huge_gradients_count_as_large_ones():
    gradients = torch.tensor([[1e200], [-INF], [NAN], [NAN]], dtype=torch.float64)
    parts = variance_decomposition(gradients, torch.tensor([0, 1, 2, 2]), torch.tensor([True, True, False, False]))
    assert parts.total.item() == pytest.approx(1e200) == parts.inter.item() and parts.intra == 0


def test_inputs_are_checked():
    p, means = torch.tensor([0.5, 0.5]), torch.zeros(2, 3)
    delta = torch.tensor(1.0)
    for bad in ([0.5, 0.6], [1.5, -0.5], [NAN, 1.0], [INF, 0.0], [0.0, 0.0]):
        broken = torch.tensor(bad)
        for name, call in {
            "gini_impurity": lambda q: gini_impurity(q),
            "shannon_entropy": lambda q: shannon_entropy(q),
            "pairwise_variance": lambda q: pairwise_variance(q, means),
            "gini_bound": lambda q: gini_bound(q, delta),
            "entropy_bound": lambda q: entropy_bound(q, delta),
            "bound_slack": lambda q: bound_slack(q, means),
            "dispersion_bound": lambda q: dispersion_bound(q, means + 1, 1.0),
            "transport_bound": lambda q: transport_bound(q, means + 1, 1.0),
        }.items():
            with pytest.raises(CalibrantError, match=rf"{name}: probabilities have to be at least 0 with sum 1"):
                call(broken)
    for call, message in [
        (lambda: pairwise_variance(p, torch.zeros(3, 3)), "K is 2 in probabilities and 3 in means"),
        (lambda: gini_bound(p, torch.ones(2)), r"expected delta_squared \[\], one for each distribution, got \[2\]"),
        (lambda: gini_bound(p, -delta), "delta_squared has to be finite and at least 0"),
        (lambda: bound_slack(p, means, delta * INF), "delta_squared has to be finite"),
        (lambda: dispersion_bound(p, means, 1.0), "dispersion_bound: an embedding is zero"),
        (lambda: transport_bound(p, means * NAN, 1.0), "transport_bound: an embedding is zero or not finite"),
        (lambda: cosine_distances(means), "cosine_distances: an embedding is zero"),
        (lambda: lipschitz_squared(means, means), "lipschitz_squared: an embedding is zero"),
        (lambda: dispersion_bound(p, means + 1, -1.0), "lipschitz has to be a finite number of at least 0"),
        (lambda: transport_bound(p, means + 1, NAN), "lipschitz has to be a finite number of at least 0"),
        (lambda: variance_decomposition(means, torch.zeros(2)), "clusters have to be integers"),
        (lambda: variance_decomposition(means, torch.zeros(3).long()), "G is 2 in gradients and 3 in clusters"),
        (lambda: largest_disagreement(means[0]), "means has 1 axes instead of at least 2"),
    ]:
        with pytest.raises(CalibrantError, match=message):
            call()
    assert lipschitz_squared(torch.tensor([[0.0], [1.0]]), torch.ones(2, 2)) == torch.finfo(torch.float32).max
    assert lipschitz_squared(torch.zeros(2, 1), torch.ones(2, 2)) == 0
