"""Semantic, predictive and token entropy."""

import math

import oracles
import pytest
import torch
from builders_entropy import DTYPES, IDS, LOG_MASS, random_groups

from calibrant.signals import (
    group_token_entropy,
    mean_logprob,
    predictive_entropy,
    scored,
    self_consistency,
    semantic_entropy,
    token_entropy,
)

NAN, INF = math.nan, math.inf


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
