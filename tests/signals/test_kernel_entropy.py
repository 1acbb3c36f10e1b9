"""Kernel language entropy."""

import math

import oracles
import pytest
import torch
from builders_entropy import complete, graph, random_groups

from calibrant.signals import (
    kernel_language_entropy,
    semantic_entropy,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("scores", "options", "expected"),
    [
        (complete(4, 0.0), {}, 1.3862944),
        (complete(4, 2.0), {}, 0.7541472),
        (complete(4, 1.0), {}, 1.2133474),
        (graph(4, {(0, 1): 2, (2, 3): 2}), {}, 1.2341999),
        (graph(4, {(0, 1): 2, (2, 3): 2}), {"kernel": "matern"}, 1.2554823),
        (graph(4, {(0, 1): 2, (2, 3): 2, (0, 2): 1, (1, 3): 0.5}), {}, 1.2078129),
        (graph(4, {(0, 1): 2, (2, 3): 2, (0, 2): 1, (1, 3): 0.5}), {"kernel": "matern"}, 1.2533240),
    ],
)
def test_vectors_of_kernel_language_entropy(scores, options, expected):
    assert kernel_language_entropy(scores, t=0.3, **options).item() == pytest.approx(expected, abs=1e-7)


def test_the_mixture_with_semantic_entropy():
    pairs = graph(4, {(0, 1): 2, (2, 3): 2})
    clusters = torch.tensor([[0, 0, 1, 1]])
    log_mass = torch.tensor([[0.35, 0.35, 0.15, 0.15]], dtype=torch.float64).log()  # p = (.7, .3)
    found = kernel_language_entropy(pairs, t=0.3, clusters=clusters, log_mass=log_mass, alpha=0.5)
    assert found.item() == pytest.approx(1.0286781, abs=1e-7)


def test_the_block_matrix_has_the_semantic_entropy():
    clusters, log_mass, where, entailment, _ = random_groups(40, 6)
    for mass in (None, log_mass):
        mixed = kernel_language_entropy(entailment, where=where, clusters=clusters, log_mass=mass, alpha=0.0)
        plain = semantic_entropy(clusters, torch.zeros_like(log_mass) if mass is None else mass, where)
        torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-12)
    alone = kernel_language_entropy(entailment, where=where, clusters=clusters, log_mass=log_mass, alpha=1.0)
    torch.testing.assert_close(alone, kernel_language_entropy(entailment, where=where), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "shares"), [(4, (1, 0.8752, 0.5440)), (8, (1, 0.6847, 0.1527)), (16, (1, 0.2322, 0.0039))]
)
def test_complete_graphs_at_a_fixed_time(n, shares):
    scores = torch.cat([complete(n, w) for w in (0.0, 1.0, 2.0)])
    found = kernel_language_entropy(scores, t=0.3) / math.log(n)
    assert found.tolist() == pytest.approx(shares, abs=5e-5)


@pytest.mark.parametrize("kernel", ["heat", "matern"])
@pytest.mark.parametrize("n", [2, 3, 10, 33])
def test_complete_graphs_in_closed_form(kernel, n):
    for weight in (0.5, 1.0, 2.0):
        # heat: q = exp(-n w t) = exp(-3 w); Matern with kappa = nu = 1: q = 2 / (2 + n w)
        q = math.exp(-3.0 * weight) if kernel == "heat" else 2.0 / (2.0 + n * weight)
        first, rest = 1 / (1 + (n - 1) * q), q / (1 + (n - 1) * q)
        expected = -first * math.log(first) - (n - 1) * rest * math.log(rest)
        assert kernel_language_entropy(complete(n, weight), kernel).item() == pytest.approx(expected, rel=1e-11)


def test_the_default_time_follows_the_group_size():
    # t n = 3 whatever n, so n = 10 has t = 0.3
    scores = random_groups(4, 10)[3]
    torch.testing.assert_close(
        kernel_language_entropy(scores), kernel_language_entropy(scores, t=0.3), rtol=1e-12, atol=0
    )
    # one meaning, as a share of ln n: 0.04 and 0.09, at a fixed time 0.54 and 0.004; rescaled it is 0
    sizes = [complete(n, 2.0) for n in (4, 16)]
    followed = [kernel_language_entropy(x).item() / math.log(x.shape[-1]) for x in sizes]
    assert followed == pytest.approx([0.0373, 0.0907], abs=1e-4)
    assert [kernel_language_entropy(x, rescale=True).item() for x in sizes] == [0.0, 0.0]


@pytest.mark.parametrize("kernel", ["heat", "matern"])
@pytest.mark.parametrize("mixed", [False, True])
def test_kernel_language_entropy_is_the_loop(kernel, mixed):
    clusters, log_mass, where, entailment, _ = random_groups(10, 5)
    options = {"kappa": 0.7, "nu": 2, "t": None if mixed else 0.45}
    mixture = {"clusters": clusters, "log_mass": log_mass, "alpha": 0.3} if mixed else {}
    found = kernel_language_entropy(entailment, kernel, where, **options, **mixture)
    for n in range(10):
        own = {name: x[n].tolist() if isinstance(x, torch.Tensor) else x for name, x in mixture.items()}
        expected = oracles.kernel_language_entropy(entailment[n].tolist(), where[n].tolist(), kernel, **options, **own)
        assert found[n].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_probabilities_and_their_mean_scores_are_one_graph():
    entailment = random_groups(6, 5)[3]
    scores = entailment[..., 2] + 0.5 * entailment[..., 1]
    torch.testing.assert_close(
        kernel_language_entropy(entailment), kernel_language_entropy(scores), rtol=1e-12, atol=1e-12
    )
    half = kernel_language_entropy(entailment.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), kernel_language_entropy(entailment), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kernel", ["heat", "matern"])
@pytest.mark.parametrize("mixed", [False, True])
def test_rescaled_kernel_language_entropy(kernel, mixed):
    for n in (2, 4, 9):
        clusters = torch.stack([torch.zeros(n), torch.arange(n), torch.zeros(n)]).long()
        mixture = {"clusters": clusters, "alpha": 0.6} if mixed else {}
        scores = torch.cat([complete(n, 2.0), complete(n, 0.0), complete(n, 1.0)])
        u = kernel_language_entropy(scores, kernel, rescale=True, **mixture)
        assert u[0] == 0.0 and u[1].item() == pytest.approx(1.0, abs=1e-12) and 0 < u[2] < 1
        raw = kernel_language_entropy(scores, kernel, **mixture)
        assert u[2].item() == pytest.approx(((raw[2] - raw[0]) / (math.log(n) - raw[0])).item(), abs=1e-12)


def test_an_answer_without_score_is_alone():
    entailment = random_groups(3, 4)[3]
    spoilt, alone = entailment.clone(), (entailment[..., 2] + 0.5 * entailment[..., 1]).clone()
    spoilt[:, 1], spoilt[:, :, 1] = NAN, INF
    alone[:, 1], alone[:, :, 1] = 0.0, 0.0
    torch.testing.assert_close(kernel_language_entropy(spoilt), kernel_language_entropy(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_in_the_mixture_a_log_likelihood_that_is_no_number_drops_its_rollout(bad):
    clusters, log_mass, _, entailment, _ = random_groups(3, 5)
    log_mass[:, 2] = bad
    keep = torch.tensor([0, 1, 3, 4])
    alone = kernel_language_entropy(
        entailment[:, keep][:, :, keep], clusters=clusters[:, keep], log_mass=log_mass[:, keep]
    )
    mixed = kernel_language_entropy(entailment, clusters=clusters, log_mass=log_mass)
    torch.testing.assert_close(mixed, alone, rtol=1e-12, atol=1e-12)
    # without clusters it is not read
    assert torch.equal(kernel_language_entropy(entailment, log_mass=log_mass), kernel_language_entropy(entailment))


def test_the_diagonal_of_the_entailment_is_not_read():
    scores = random_groups(3, 5)[4]
    hidden = scores.clone()
    for value in (0.0, 1.0, NAN):
        hidden.diagonal(dim1=-2, dim2=-1).fill_(value)
        found = kernel_language_entropy(hidden)
        torch.testing.assert_close(found, kernel_language_entropy(scores), rtol=1e-12, atol=0)
