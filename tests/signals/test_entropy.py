import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.signals import (
    group_token_entropy,
    kernel_language_entropy,
    mean_logprob,
    predictive_entropy,
    scored,
    self_consistency,
    semantic_entropy,
    semantic_nearest_neighbour_entropy,
    token_entropy,
)

NAN, INF = math.nan, math.inf
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
IDS = torch.tensor([[0, 0, 1, 2]])
LOG_MASS = torch.tensor([[-0.1, -0.2, -0.4, -0.8]], dtype=torch.float64)


def random_groups(n=12, g=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.randint(-2, 3, (n, g), generator=generator)
    log_mass = -2 * torch.rand(n, g, generator=generator, dtype=torch.float64)
    where = torch.rand(n, g, generator=generator) > 0.3
    entailment = torch.softmax(2 * torch.randn(n, g, g, 3, generator=generator, dtype=torch.float64), -1)
    similarity = torch.rand(n, g, g, generator=generator, dtype=torch.float64)
    similarity.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return clusters, log_mass.to(dtype), where, entailment.to(dtype), similarity.to(dtype)


def graph(n, edges):
    """Scores of a graph from its weights `{(i, j): w}`: half the weight in each direction."""
    scores = torch.zeros(1, n, n, dtype=torch.float64)
    for (i, j), weight in edges.items():
        scores[0, i, j] = scores[0, j, i] = weight / 2
    return scores


def complete(n, weight):
    return torch.full((1, n, n), weight / 2, dtype=torch.float64)


# Semantic entropy


def test_semantic_entropy_by_hand():
    # p = (1/2, 1/4, 1/4): 1/2 ln 2 + 2/4 ln 4 = 1.5 ln 2
    assert semantic_entropy(IDS).item() == pytest.approx(1.5 * math.log(2))
    # softmax summed per cluster: p = (.606203, .235761, .158035)
    found = semantic_entropy(IDS, LOG_MASS)
    assert found.dtype == torch.float64 and found.item() == pytest.approx(0.9356538, abs=1e-7)
    assert found.item() / math.log(4) == pytest.approx(0.6749316, abs=1e-7)


def test_the_mc_estimator_is_not_bounded():
    # -(ln 0.99 + ln 0.01) / 2 = 2.3076 > ln 2
    log_mass = torch.tensor([[0.99, 0.01]], dtype=torch.float64).log()
    found = semantic_entropy(torch.tensor([[0, 1]]), log_mass, estimator="mc").item()
    assert found == pytest.approx(2.3076, abs=1e-4) and found > math.log(2)
    # counted: -(ln 1/2 + 2 ln 1/4) / 3 = (5/3) ln 2, between ln 3 and ln 4
    assert semantic_entropy(IDS, estimator="mc").item() == pytest.approx(5 / 3 * math.log(2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("estimator", ["rao", "mc"])
def test_semantic_entropy_is_the_loop(dtype, estimator):
    clusters, log_mass, where, _, _ = random_groups(40, 7, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1.01 * torch.finfo(dtype).eps
    found = semantic_entropy(clusters, log_mass, where, estimator=estimator)
    counts = semantic_entropy(clusters, None, where, estimator=estimator)
    assert found.dtype == dtype and counts.dtype == torch.float32
    for n in range(40):
        c, mass, w = clusters[n].tolist(), log_mass[n].tolist(), where[n].tolist()
        expected = oracles.semantic_entropy(c, mass, w, estimator)
        assert found[n].item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
        assert counts[n].item() == pytest.approx(oracles.semantic_entropy(c, [0.0] * 7, w, estimator), abs=1e-6)


@pytest.mark.parametrize("estimator", ["rao", "mc"])
def test_one_meaning_is_zero_to_the_bit_and_equal_masses_are_counts(estimator):
    clusters, log_mass, where, _, _ = random_groups(40, 7)
    one = torch.full_like(clusters, 9)
    assert semantic_entropy(one, log_mass, where, estimator=estimator).tolist() == [0.0] * 40
    assert semantic_entropy(one, None, where, estimator=estimator).tolist() == [0.0] * 40
    torch.testing.assert_close(
        semantic_entropy(clusters, torch.full_like(log_mass, -700.0), where, estimator=estimator),
        semantic_entropy(clusters, None, where, estimator=estimator).double(),
        rtol=0,
        atol=1e-6,
    )


def test_bounds_of_semantic_entropy():
    clusters, log_mass, where, _, _ = random_groups(200, 6)
    for mass in (torch.zeros_like(log_mass), log_mass):
        rao = semantic_entropy(clusters, mass, where)
        mc = semantic_entropy(clusters, mass, where, estimator="mc")
        for n in range(200):
            count = where[n].sum().item()
            modes = len(clusters[n][where[n]].unique())
            if modes:
                assert 0 <= rao[n].item() <= math.log(min(count, modes)) <= mc[n].item() + 1e-12
                if mass is not log_mass:
                    assert mc[n].item() <= math.log(count) + 1e-12
    assert (semantic_entropy(torch.arange(11)[None], torch.zeros(1, 11).double()) == math.log(11)).all()


def test_a_certain_group_has_self_consistency_one_and_semantic_entropy_zero():
    clusters, _, where, _, _ = random_groups(60, 3)
    certain = self_consistency(clusters, where) == 1
    none = ~where.any(-1)
    assert torch.equal(semantic_entropy(clusters, None, where) == 0, certain | none) and certain.any()


def test_the_names_of_clusters_and_a_shift_of_masses_do_not_matter():
    clusters, log_mass, where, _, _ = random_groups(20, 6)
    renamed = torch.tensor([5, -(2**62), 0, 99, 2**62])[clusters + 2]
    torch.testing.assert_close(
        semantic_entropy(renamed, log_mass - 1e4, where), semantic_entropy(clusters, log_mass, where), rtol=1e-9, atol=0
    )


def test_masses_far_apart_do_not_underflow():
    # summed log-likelihoods: exp(-2000) is 0 in float64, their difference is not; p = (1/2, 1/2)
    assert semantic_entropy(torch.tensor([[0, 1]]), torch.tensor([[-2000.0, -2000.0]])).item() == pytest.approx(
        math.log(2)
    )
    far = torch.tensor([[0.0, -1e300]], dtype=torch.float64)
    assert semantic_entropy(torch.tensor([[0, 1]]), far).item() == 0.0
    assert math.isfinite(semantic_entropy(torch.tensor([[0, 1]]), far, estimator="mc").item())
    far = torch.tensor([[1e308, 1e308, -1e308]], dtype=torch.float64)
    assert semantic_entropy(torch.tensor([[0, 1, 2]]), far).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_log_likelihood_that_is_no_number_drops_its_rollout(bad):
    spoilt = torch.cat([LOG_MASS, torch.tensor([[bad]], dtype=torch.float64)], 1)
    clusters = torch.tensor([[0, 0, 1, 2, 3]])
    torch.testing.assert_close(semantic_entropy(clusters, spoilt), semantic_entropy(IDS, LOG_MASS))
    torch.testing.assert_close(
        semantic_entropy(clusters, spoilt, estimator="mc"), semantic_entropy(IDS, LOG_MASS, estimator="mc")
    )
    assert predictive_entropy(spoilt).item() == pytest.approx(1.5 / 4)


def test_an_empty_completion_is_dropped_with_the_rule_that_names_it():
    logprobs = torch.log(torch.tensor([[[0.5, 0.125], [0.5, 0.9], [0.9, 0.9]]], dtype=torch.float64))
    mask = torch.tensor([[[1, 1], [1, 0], [0, 0]]])
    means, where = mean_logprob(logprobs, mask), scored(logprobs, mask)
    # without the third: p = (1/4, 1/2) / (3/4)
    expected = math.log(3) / 3 + 2 / 3 * math.log(1.5)
    assert semantic_entropy(torch.tensor([[0, 1, 2]]), means, where).item() == pytest.approx(expected)
    assert predictive_entropy(means, where).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


# Predictive and token entropy


def test_predictive_entropy_is_minus_the_mean():
    assert predictive_entropy(LOG_MASS).item() == pytest.approx(1.5 / 4)
    _, log_mass, where, _, _ = random_groups(30, 6)
    found = predictive_entropy(log_mass, where)
    for n in range(30):
        expected = oracles.predictive_entropy(log_mass[n].tolist(), where[n].tolist())
        assert found[n].item() == pytest.approx(expected, rel=1e-13)
    assert predictive_entropy(torch.tensor([[-2.0]])).item() == 2.0
    assert predictive_entropy(torch.tensor([[NAN, -INF]])).item() == 0.0


def test_token_entropy_by_hand_and_by_loop():
    # EDGE-GRPO's rows: (.2, .4, pad), (.6, .6, .6); ratio to their mean .45: 2/3 and 4/3
    entropies = torch.tensor([[[0.2, 0.4, NAN], [0.6, 0.6, 0.6]]], dtype=torch.float64)
    mask = torch.tensor([[[1, 1, 0], [1, 1, 1]]])
    assert token_entropy(entropies, mask)[0].tolist() == pytest.approx([0.3, 0.6])
    assert group_token_entropy(entropies, mask).item() == pytest.approx(0.45)
    assert group_token_entropy(entropies, mask, torch.tensor([[False, True]])).item() == pytest.approx(0.6)
    ratio = token_entropy(entropies, mask) / group_token_entropy(entropies, mask)[:, None]
    assert (1 / ratio)[0].tolist() == pytest.approx([1.5, 0.75])
    generator = torch.Generator().manual_seed(3)
    entropies = torch.rand(20, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(20, 4, 5, generator=generator) > 0.6
    where = torch.rand(20, 4, generator=generator) > 0.3
    entropies[torch.rand(20, 4, 5, generator=generator) > 0.9] = NAN
    for n in range(20):
        rows = [oracles.token_mean(entropies[n, i].tolist(), mask[n, i].tolist()) for i in range(4)]
        assert token_entropy(entropies, mask)[n].tolist() == pytest.approx([r or 0.0 for r in rows])
        kept = [r for r, w in zip(rows, where[n].tolist(), strict=True) if w and r is not None]
        expected = oracles.mean(kept) if kept else 0.0
        assert group_token_entropy(entropies, mask, where)[n].item() == pytest.approx(expected)


# Kernel language entropy


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


# Semantic nearest neighbours


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


# All of them


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
