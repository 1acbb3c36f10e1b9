import math

import pytest
import torch
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
from calibrant.signals import barycentric_transport, cosine_dispersion, semantic_entropy

NAN, INF = math.nan, math.inf


@st.composite
def modes(draw, least=1):
    """Probabilities [K], mean gradients [K, D], embeddings [K, 3] without a zero."""
    k, d = draw(st.integers(least, 5)), draw(st.integers(1, 3))
    weights = torch.tensor(draw(st.lists(st.floats(0, 1), min_size=k, max_size=k)), dtype=torch.float64)
    weights[0] += 1e-3
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(k, d, generator=generator, dtype=torch.float64) * 10 ** draw(st.integers(-3, 3))
    return weights / weights.sum(), means, torch.randn(k, 3, generator=generator, dtype=torch.float64)


def close(a, b, scale=None):
    scale = max(abs(float(a)), abs(float(b)), float(scale or 0), 1e-300)
    return abs(float(a) - float(b)) <= 1e-9 * scale


# ---- probabilities: B.1 to B.3


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(modes())
def test_gini_is_at_most_entropy(parts):
    p, _, _ = parts
    gini, entropy, k = gini_impurity(p), shannon_entropy(p), len(p)
    assert gini.item() == pytest.approx(1 - math.fsum(x * x for x in p.tolist()), abs=1e-12)
    assert entropy.item() == pytest.approx(-math.fsum(x * math.log(x) for x in p.tolist() if x > 0), abs=1e-12)
    assert 0 <= gini <= entropy + 1e-15 and gini <= 1 - 1 / k + 1e-12 and entropy <= math.log(k) + 1e-12
    assert close((p[:, None] * p[None, :]).sum() - (p * p).sum(), gini, 1)  # the identity before equation 15


def test_both_are_extreme_where_they_should_be():
    for k in (1, 2, 7):
        uniform, certain = torch.full((k,), 1 / k, dtype=torch.float64), torch.eye(k, dtype=torch.float64)
        assert gini_impurity(uniform).item() == pytest.approx(1 - 1 / k)
        assert shannon_entropy(uniform).item() == pytest.approx(math.log(k))
        assert (gini_impurity(certain) == 0).all() and (shannon_entropy(certain) == 0).all()
    # no cancellation: G = 2 pi (1 - pi)
    tiny = torch.tensor([1e-20, 1.0], dtype=torch.float64)
    assert gini_impurity(tiny).item() == pytest.approx(2e-20, rel=1e-9, abs=0)


def test_with_two_modes_both_rise_together_and_with_three_they_do_not():
    x = torch.linspace(0, 0.5, 200, dtype=torch.float64)
    p = torch.stack([x, 1 - x], -1)
    assert (gini_impurity(p).diff() > 0).all() and (shannon_entropy(p).diff() > 0).all()
    torch.testing.assert_close(gini_impurity(p), 2 * x - 2 * x * x)  # equation 17
    # three modes: B.2 claims nothing, and the orders can differ
    p = torch.tensor([[0.7, 0.15, 0.15], [0.61, 0.385, 0.005]], dtype=torch.float64)
    assert gini_impurity(p)[0] < gini_impurity(p)[1] and shannon_entropy(p)[0] > shannon_entropy(p)[1]


# ---- the bounds: equations 4, 12 to 15, 18, 19


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(modes())
def test_the_chain_of_bounds_and_both_forms_of_the_slack(parts):
    p, means, _ = parts
    k = len(p)
    distances = [[math.fsum(((means[i] - means[j]) ** 2).tolist()) for j in range(k)] for i in range(k)]
    half = math.fsum(p[i].item() * p[j].item() * distances[i][j] for i in range(k) for j in range(k)) / 2
    delta = largest_disagreement(means)
    assert close(delta, max(map(max, distances)))
    variance, gini, entropy = pairwise_variance(p, means), gini_bound(p, delta), entropy_bound(p, delta)
    assert close(variance, half, delta)
    assert variance <= gini * (1 + 1e-12) + 1e-300 and gini <= entropy * (1 + 1e-12)
    assert close(gini, delta / 2 * gini_impurity(p)) and close(entropy, delta / 2 * shannon_entropy(p))
    slack = bound_slack(p, means)
    assert slack >= 0 and close(slack, gini - variance, delta)  # (18) is (19)
    assert close(bound_slack(p, means, 3 * delta), gini_bound(p, 3 * delta) - variance, 3 * delta)


def test_bounds_read_the_probabilities_that_the_measures_read():
    """Divided by their sum twice, these move in their last digit, and their entropy in its third."""
    delta = torch.tensor(2.0, dtype=torch.float64)
    rare = torch.linspace(1e-16, 1e-14, 500, dtype=torch.float64)
    p = torch.stack([1 - 0.9 * rare, rare], -1)
    assert torch.equal(entropy_bound(p, delta.expand(500)), shannon_entropy(p))
    assert torch.equal(gini_bound(p, delta.expand(500)), gini_impurity(p))


def test_regimes_of_the_slack():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    corners = torch.eye(3, dtype=torch.float64)  # all distances 2
    assert bound_slack(p, corners).item() == pytest.approx(0, abs=1e-15)
    assert pairwise_variance(p, corners).item() == pytest.approx(gini_impurity(p).item())
    delta = torch.tensor(2.0, dtype=torch.float64)
    near = 1e-9 * corners
    assert bound_slack(p, near, delta).item() == pytest.approx(gini_bound(p, delta).item())
    assert bound_slack(p, near) < 1e-15  # the loose regime needs a Delta from outside
    with pytest.raises(CalibrantError, match="delta_squared has to be at least the largest squared distance"):
        bound_slack(p, corners, delta * 0.99)


def test_the_gini_bound_is_not_one_of_the_whole_variance():
    # one mode, gradients -1 and 1: variance 1, the bound of B.1 is 0
    gradients, clusters = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 0])
    parts = variance_decomposition(gradients, clusters)
    delta = largest_disagreement(torch.tensor([[0.0]]))
    bound = gini_bound(torch.tensor([1.0]), delta)
    assert bound == 0 and (parts.total, parts.intra, parts.inter) == (1, 1, 0)
    # with Delta over all pairs of single gradients it is still 0
    assert gini_bound(torch.tensor([1.0]), largest_disagreement(gradients)) == 0


# ---- equations 2 and 3


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


# ---- appendix C


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(modes(least=2))
def test_smooth_gradients_obey_both_bounds(parts):
    p, means, embeddings = parts
    smooth = lipschitz_squared(means, embeddings).item()
    distances = cosine_distances(embeddings)
    unit = embeddings / embeddings.norm(dim=-1, keepdim=True)
    assert torch.allclose(distances, 1 - unit @ unit.T, atol=1e-12)
    squares = (means[:, None] - means[None]).square().sum(-1)
    assert (squares <= smooth * distances * (1 + 1e-9) + 1e-12 * squares.max()).all()
    assert (squares > 0.999999 * smooth * distances).logical_and(distances > 0).any()  # no smaller constant does
    variance = pairwise_variance(p, means)
    dispersion, transport = dispersion_bound(p, embeddings, smooth), transport_bound(p, embeddings, smooth)
    assert close(dispersion, smooth / 2 * (p[:, None] * p[None, :] * distances).sum(), smooth)
    centre = (p[:, None] * unit).sum(0)
    assert close(transport, smooth * (p * (1 - unit @ (centre / centre.norm()))).sum(), smooth)
    assert variance <= dispersion * (1 + 1e-9) + 1e-12 * smooth and dispersion <= transport * (1 + 1e-9)
    assert close(dispersion, transport / 2 * (1 + centre.norm()), smooth)  # L^2 BoT (1 + |b|)


def test_bounds_in_terms_of_the_signals():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.rand(6, 3, generator=generator, dtype=torch.float64)  # no negative cosine
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    cd = cosine_dispersion(embeddings[None])[0]
    assert dispersion_bound(uniform, embeddings, 4.0).item() == pytest.approx(2 * cd.item())  # L^2/2 CD
    bot = barycentric_transport(embeddings[None], torch.arange(6)[None])[0]
    assert transport_bound(uniform, embeddings, 4.0).item() == pytest.approx(2 * 4 * bot.item())  # L^2 times 2 BoT
    entropy = semantic_entropy(torch.tensor([[0, 0, 1, 2]]))[0]
    assert shannon_entropy(torch.tensor([0.5, 0.25, 0.25])).item() == pytest.approx(entropy.item())


def test_the_papers_bound_by_clipped_dispersion_fails_for_opposite_embeddings():
    embeddings, means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.0], [2.0]])
    half = torch.tensor([0.5, 0.5])
    smooth = lipschitz_squared(means, embeddings).item()
    assert smooth == 2.0 and pairwise_variance(half, means) == 1.0  # 4 = 2 * d, d = 2
    papers = smooth / 2 * cosine_dispersion(embeddings[None])[0].item()
    assert papers == pytest.approx(0.5) and papers < 1.0 <= dispersion_bound(half, embeddings, smooth)


def test_the_papers_bound_by_transport_fails_by_the_factor_in_bot():
    embeddings, means = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0]])
    half = torch.tensor([0.5, 0.5])
    smooth = lipschitz_squared(means, embeddings).item()
    assert smooth == pytest.approx(1.0) and pairwise_variance(half, means) == 0.25
    papers = smooth * barycentric_transport(embeddings[None], torch.tensor([[0, 1]]))[0].item()
    assert papers == pytest.approx((1 - math.sqrt(0.5)) / 2) and papers < 0.25
    assert transport_bound(half, embeddings, smooth).item() == pytest.approx(2 * papers) and 2 * papers > 0.25


def test_close_embeddings_do_not_cancel():
    angle = 1e-7
    embeddings = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert cosine_distances(embeddings)[0, 1].item() == pytest.approx(angle**2 / 2, rel=1e-6, abs=0)
    assert transport_bound(half, embeddings, 1.0).item() == pytest.approx(angle**2 / 8, rel=1e-6, abs=0)
    assert dispersion_bound(half, embeddings, 1.0).item() == pytest.approx(angle**2 / 8, rel=1e-6, abs=0)


# ---- inputs


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
