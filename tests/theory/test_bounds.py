"""The bounds of examples/theory_bounds.py on gradients of modes."""

import math

import pytest
import torch
from builders_theory import close, modes
from hypothesis import HealthCheck, given, settings
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
