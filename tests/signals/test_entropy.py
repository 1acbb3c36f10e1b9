"""Nearest neighbour entropy, and what holds for all entropies."""

import math

import oracles
import pytest
import torch
from builders_entropy import DTYPES, random_groups
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.signals import (
    group_token_entropy,
    kernel_language_entropy,
    predictive_entropy,
    semantic_entropy,
    semantic_nearest_neighbour_entropy,
    token_entropy,
)

NAN, INF = math.nan, math.inf


def test_vectors_of_nearest_neighbours():
    similarity = torch.tensor([[[1, 0.8, 0.1], [0.8, 1, 0.2], [0.1, 0.2, 1]]], dtype=torch.float64)
    assert semantic_nearest_neighbour_entropy(similarity).item() == pytest.approx(-1.7457286, abs=1e-7)
    weights = torch.tensor([[-0.1, -0.2, -1.0]], dtype=torch.float64).exp()
    for scale in (1.0, 7.0):
        found = semantic_nearest_neighbour_entropy(similarity, weights=scale * weights).item()
        assert found == pytest.approx(-1.7754133, abs=1e-7)
    same, apart = torch.ones(1, 3, 3).double(), torch.eye(3).double()[None]
    assert semantic_nearest_neighbour_entropy(same).item() == pytest.approx(-2.0986123, abs=1e-7)
    assert semantic_nearest_neighbour_entropy(apart).item() == pytest.approx(-1.5514447, abs=1e-7)
    for tau in (1e-320, 1e-3, 0.1, 1.0, 100.0):
        assert semantic_nearest_neighbour_entropy(same, tau, rescale=True).item() == 0.0
        assert semantic_nearest_neighbour_entropy(apart, tau, rescale=True).item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_nearest_neighbours_are_the_loop(dtype, tau):
    _, log_mass, where, _, similarity = random_groups(20, 5, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1.01 * torch.finfo(dtype).eps
    weights = log_mass.double().exp()
    found = semantic_nearest_neighbour_entropy(similarity, tau, weights, where)
    u = semantic_nearest_neighbour_entropy(similarity.double(), tau, weights, where, rescale=True)
    assert found.dtype == dtype
    for i in range(20):
        w, n = where[i].tolist(), where[i].sum().item()
        expected = oracles.nearest_neighbour_entropy(similarity[i].tolist(), tau, weights[i].tolist(), w)
        assert found[i].item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
        low = -math.log(max(n, 1)) - 1 / tau
        high = -math.log(math.exp(1 / tau) + n - 1) if n else 0.0
        share = (expected - low) / (high - low) if n > 1 else 0.0
        assert u[i].item() == pytest.approx(share, abs=1e-9)


def test_weights_of_nearest_neighbours():
    similarity = random_groups(4, 5)[4]
    plain = semantic_nearest_neighbour_entropy(similarity)
    for equal in (torch.full((4, 5), 3.0), torch.zeros(4, 5), -torch.ones(4, 5)):
        torch.testing.assert_close(semantic_nearest_neighbour_entropy(similarity, 1.0, equal), plain)
    weights = torch.rand(4, 5)
    weights[:, 2] = NAN
    keep = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(
        semantic_nearest_neighbour_entropy(similarity, 1.0, weights),
        semantic_nearest_neighbour_entropy(similarity[:, keep][:, :, keep], 1.0, weights[:, keep]),
    )


def everything(clusters, log_mass, where, entailment, similarity):
    mixture = {"clusters": clusters, "log_mass": log_mass}
    return {
        "se": semantic_entropy(clusters, log_mass, where),
        "mc": semantic_entropy(clusters, log_mass, where, estimator="mc"),
        "counts": semantic_entropy(clusters, None, where),
        "pe": predictive_entropy(log_mass, where),
        "heat": kernel_language_entropy(entailment, where=where),
        "matern": kernel_language_entropy(entailment, "matern", where, kappa=2.0, nu=1.5, rescale=True),
        "mixed": kernel_language_entropy(entailment, where=where, rescale=True, **mixture),
        "snne": semantic_nearest_neighbour_entropy(similarity, 1.0, log_mass.exp(), where),
        "snne u": semantic_nearest_neighbour_entropy(similarity, 1.0, None, where, rescale=True),
    }


def cut(inputs, n, keep):
    return [x[n : n + 1, keep] if x.ndim == 2 else x[n : n + 1, keep][:, :, keep] for x in inputs]


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_masked_is_dropped(size):
    clusters, log_mass, where, entailment, similarity = random_groups(10, size, seed=size)
    pair = where[:, :, None] & where[:, None, :]
    garbage = torch.tensor([NAN, INF, -INF, 1e300])[torch.randint(0, 4, (size,))].double()
    hidden = (
        torch.where(where, clusters, clusters[:, :1]),
        torch.where(where, log_mass, garbage),
        where,
        torch.where(pair[..., None], entailment, garbage[:, None]),
        torch.where(pair, similarity, garbage),
    )
    found = everything(*hidden)
    for n in range(10):
        if where[n].any():
            alone = everything(*cut((clusters, log_mass, where, entailment, similarity), n, where[n]))
            for name, value in alone.items():
                assert found[name][n].item() == pytest.approx(value.item(), rel=1e-11, abs=1e-11), name
        else:
            assert all(value[n] == 0 for value in found.values())


def test_order_of_rollouts_and_leading_axes_do_not_matter():
    inputs = random_groups(6, 7)
    found = everything(*inputs)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(4))
    shuffled = [x[:, order] if x.ndim == 2 else x[:, order][:, :, order] for x in inputs]
    torch.testing.assert_close(everything(*shuffled), found, rtol=1e-11, atol=1e-11)
    clusters, log_mass, where, _, similarity = (x.reshape(2, 3, *x.shape[1:]) for x in inputs)
    assert torch.equal(semantic_entropy(clusters, log_mass, where).flatten(), found["se"])
    assert torch.equal(predictive_entropy(log_mass, where).flatten(), found["pe"])
    nested = semantic_nearest_neighbour_entropy(similarity, 1.0, None, where, rescale=True)
    assert torch.equal(nested.flatten(), found["snne u"])


def test_no_prompts_one_rollout_and_detachment():
    assert all(x.shape == (0,) for x in everything(*(x[:0] for x in random_groups(2, 4))).values())
    single = everything(
        *(x[:, :1] if x.ndim == 2 else x[:, :1, :1] for x in random_groups(1, 4, seed=9)[:2]),
        *(torch.ones(1, 1).bool(), torch.ones(1, 1, 1, 3).double(), torch.ones(1, 1, 1).double()),
    )
    nothing_to_compare = {"se", "mc", "counts", "heat", "matern", "mixed", "snne u"}
    assert all(single[name].item() == 0.0 for name in nothing_to_compare)
    assert single["snne"].item() == pytest.approx(-1.0)
    for self_similarity in (-1.0, 0.0, 0.5, 2.0):
        similarity = torch.full((1, 1, 1), self_similarity)
        assert semantic_nearest_neighbour_entropy(similarity, rescale=True).item() == 0.0
    clusters, log_mass, where, entailment, similarity = random_groups(2, 4)
    floats = [x.requires_grad_() for x in (log_mass, entailment, similarity)]
    found = everything(clusters, floats[0], where, *floats[1:])
    assert not any(x.requires_grad for x in found.values())
    assert not token_entropy(torch.rand(1, 2, 3, requires_grad=True), torch.ones(1, 2, 3).bool()).requires_grad


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_always_finite_and_in_range(data):
    n, g = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.float16]))

    def draw(elements, *shape, dtype=dtype):
        size = math.prod(shape)
        return torch.tensor(data.draw(st.lists(elements, min_size=size, max_size=size)), dtype=dtype).reshape(shape)

    anything, share = st.floats(), st.one_of(st.floats(0, 1), st.sampled_from([NAN, INF, -INF, 0.0, 1.0, 1e300]))
    clusters = draw(st.integers(0, 2), n, g, dtype=torch.int64)
    where = draw(st.booleans(), n, g, dtype=torch.bool)
    log_mass, similarity = draw(anything, n, g), draw(share, n, g, g)
    entailment = draw(share, n, g, g, 3)
    for name, value in everything(clusters, log_mass, where, entailment, similarity).items():
        assert torch.isfinite(value).all() and value.dtype in (dtype, torch.float32), name
    top = where.sum(-1).clamp(min=1).double().log().to(dtype)
    t, tau = (
        data.draw(st.sampled_from([1e-300, 1e-3, 0.3, 1e3, 1e300])),
        data.draw(st.sampled_from([1e-320, 1.0, 1e300])),
    )
    se, mc = (semantic_entropy(clusters, log_mass, where, estimator=e) for e in ("rao", "mc"))
    kle = kernel_language_entropy(entailment, where=where, t=t)
    matern = kernel_language_entropy(entailment, "matern", where, kappa=t, nu=tau)
    assert all(((x >= 0) & (x <= top)).all() for x in (se, kle, matern)) and (mc >= 0).all()
    u = [kernel_language_entropy(entailment, "matern", where, kappa=t, nu=tau, rescale=True)]
    u += [kernel_language_entropy(entailment, where=where, t=t, clusters=clusters, log_mass=log_mass, rescale=True)]
    u += [semantic_nearest_neighbour_entropy(similarity, tau, log_mass, where, rescale=True)]
    assert all(((x >= 0) & (x <= 1)).all() for x in u)
    assert torch.isfinite(semantic_nearest_neighbour_entropy(entailment[..., 0] * 1e300, tau, log_mass, where)).all()


def test_shapes_and_options_are_checked():
    three, probabilities = torch.zeros(2, 3).long(), torch.zeros(2, 3, 3, 3)
    with pytest.raises(CalibrantError, match=r"semantic_entropy.*G is 3 in clusters and 4 in log_mass"):
        semantic_entropy(three, torch.zeros(2, 4))
    with pytest.raises(CalibrantError, match="semantic_entropy: clusters have to be integers"):
        semantic_entropy(three.float())
    with pytest.raises(CalibrantError, match="estimator has to be one of 'rao', 'mc', got 'shannon'"):
        semantic_entropy(three, estimator="shannon")
    with pytest.raises(CalibrantError, match="where has to be a boolean"):
        predictive_entropy(torch.zeros(2, 3), three)
    with pytest.raises(CalibrantError, match=r"token_entropy.*\[2, 3\]"):
        token_entropy(torch.zeros(2, 3), torch.zeros(2, 3).bool())
    with pytest.raises(CalibrantError, match=r"group_token_entropy.*G is 3 in entropies and 4 in where"):
        group_token_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5).bool(), torch.zeros(2, 4).bool())
    with pytest.raises(CalibrantError, match=r"kernel_language_entropy.*G is 3 in entailment and 4 in entailment"):
        kernel_language_entropy(torch.zeros(2, 3, 4))
    with pytest.raises(CalibrantError, match=r"\(contradiction, neutral, entailment\), got \[2, 3, 3, 2\]"):
        kernel_language_entropy(torch.zeros(2, 3, 3, 2))
    with pytest.raises(CalibrantError, match=r"kernel_language_entropy: where .*got a list"):
        kernel_language_entropy(probabilities, where=[[True] * 3] * 2)
    with pytest.raises(CalibrantError, match="kernel has to be one of 'heat', 'matern', got 'rbf'"):
        kernel_language_entropy(probabilities, "rbf")
    for name in ("t", "kappa", "nu"):
        with pytest.raises(CalibrantError, match=f"{name} has to be a finite number above 0, got 0"):
            kernel_language_entropy(probabilities, **{name: 0})
    with pytest.raises(CalibrantError, match=r"alpha has to be a number in \[0, 1\], got 1.5"):
        kernel_language_entropy(probabilities, clusters=three, alpha=1.5)
    for bad in (0.0, -1.0, NAN, INF, "1", True):
        with pytest.raises(CalibrantError, match="tau has to be a finite number above 0"):
            semantic_nearest_neighbour_entropy(torch.zeros(2, 3, 3), bad)
