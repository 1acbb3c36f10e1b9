"""Methods that read token entropies or variances: numbers by hand, and the loops of oracles."""

import math

import oracles
import pytest
import torch
from made_up import DTYPES, INF, NAN, lists, random_groups, row, weighs

from calibrant.methods import (
    apply,
    edge_grpo,
    eg_spo,
    q_hawkeye,
    r2vpo,
)


def test_edge_by_hand():
    # entropies 1 and 3: ratios 1/2 and 3/2; .3 and .6: ratios 2/3 and 4/3
    outcome = edge_grpo(torch.tensor([[3.0, -3.0]] * 2), torch.tensor([[1.0, 3.0], [0.3, 0.6]]), None)
    assert outcome.weights.tolist() == [pytest.approx([2, 2 / 3]), pytest.approx([1.5, 0.75])]
    assert outcome.scores["entropy_ratio"].tolist() == [pytest.approx([0.5, 1.5]), pytest.approx([2 / 3, 4 / 3])]
    assert [3 * w for w in outcome.weights[0].tolist()] == pytest.approx([6, 2])


def test_edge_is_clamped_and_neutral_where_nothing_is_known():
    rewards = torch.tensor([[1.0, 0.0, 0.0]]).double()
    assert edge_grpo(rewards, row(0, 1, 2), None).weights[0].tolist() == pytest.approx([10, 1, 0.5])
    assert edge_grpo(rewards, row(0.0, 0.0, 0.0), None).weights.tolist() == [[1, 1, 1]]
    assert edge_grpo(rewards, row(0.4, 0.4, 0.4), None).weights.tolist() == [[1, 1, 1]]
    assert edge_grpo(rewards, row(0.4, NAN, 1.2), None).weights[0].tolist() == pytest.approx([2, 1, 2 / 3])
    many = row(*[0.0] * 15, 1.0)
    assert edge_grpo(torch.arange(16.0)[None], many, None, high=8.0).weights[0, -1] == pytest.approx(1 / 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_edge_is_the_loop(dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("edge_grpo", groups, low=0.4, high=1.5)
    for n in range(25):
        r, h, w = lists(groups, n, "rewards", "token_entropy", "where")
        weighs(outcome, n, oracles.edge_weights(h, w, 0.4, 1.5), oracles.standardised(r, w), dtype)


def test_eg_spo_by_hand():
    rewards, entropies = row(1, 0, 0, 0), row(0.1, 0.4, 0.2, 0.3)
    assert eg_spo(rewards, entropies, None).weights.tolist() == [[0.5, 1, 0.5, 1]]  # median 0.25
    assert eg_spo(rewards, entropies, None, quantile=1.0, phi=0.2).weights.tolist() == [[0.2, 1, 0.2, 0.2]]
    assert eg_spo(rewards, entropies, None, quantile=0.0).weights.tolist() == [[1, 1, 1, 1]]
    assert eg_spo(rewards, row(0.1, 0.4, 0.2, NAN), None).weights.tolist() == [[0.5, 1, 1, 1]]
    ordered = torch.arange(26.0)[None]  # 0.28 * 25 is more than 7 in floating point
    assert eg_spo(ordered, ordered, None, quantile=0.28).weights.tolist() == [[0.5] * 7 + [1.0] * 19]
    # mean 0.25, std sqrt(0.05 / 3) = 0.1290994: sigmoid(+-1.161895), sigmoid(+-0.387298)
    soft = eg_spo(rewards, entropies, None, gate="soft", phi=0.2).weights[0].tolist()
    assert soft == pytest.approx([0.2 + 0.8 * x for x in (0.2383231, 0.7616769, 0.4043679, 0.5956321)], abs=1e-6)


@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_equal_entropies_gate_nothing(gate):
    for entropies in (row(0.3, 0.3, 0.3), row(0.3, 0.3 + 1e-9, 0.3), row(0.3, NAN, NAN), row(NAN, NAN, NAN)):
        assert (eg_spo(row(1, 0, 0), entropies, None, gate=gate).weights == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"quantile": 0.8, "phi": 0.1}, {"gate": "soft", "phi": 0.3}])
def test_eg_spo_is_the_loop(dtype, options):
    groups = random_groups(dtype=dtype)
    outcome = apply("eg_spo", groups, **options)
    for n in range(25):
        r, h, w = lists(groups, n, "rewards", "token_entropy", "where")
        weighs(outcome, n, oracles.eg_spo_weights(h, w, **options), oracles.standardised(r, w), dtype)


def test_q_hawkeye_by_hand():
    rewards = torch.cat([row(1, 5, 1, 5), row(3, 3, 3, 4)])
    options = {"form": "exponential", "reward_range": (1.0, 5.0)}
    assert q_hawkeye(rewards, None, **options).weights[:, 0].tolist() == pytest.approx([0.8187308, 0.9906688], abs=1e-7)
    # variances 4 and 0.1875 of at most 4
    linear = q_hawkeye(rewards, None, reward_range=(1.0, 5.0))
    assert linear.scores["reward_variance"].tolist() == pytest.approx([1, 0.046875])
    assert linear.weights[:, 0].tolist() == pytest.approx([0.4, 1 - 0.6 * 0.046875])
    assert q_hawkeye(rewards, None, reward_range=(2.0, 4.0)).scores["reward_variance"][0] == 1.0
    assert q_hawkeye(rewards, None, alpha=2.0, reward_range=(1.0, 5.0)).weights[0, 0] == 0.0


@pytest.mark.parametrize("form, alpha", [("linear", None), ("exponential", None), ("linear", 1.5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_q_hawkeye_is_the_loop(form, alpha, dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("q_hawkeye", groups, form=form, alpha=alpha, reward_range=(-1.0, 1.5))
    strength = {"linear": 0.6, "exponential": 0.2}[form] if alpha is None else alpha
    for n in range(25):
        r, w = lists(groups, n, "rewards", "where")
        weight = oracles.variance_weight(r, w, -1.0, 1.5, form, strength)
        weighs(outcome, n, [weight] * 6, oracles.standardised(r, w), dtype)


def test_r2vpo_by_hand():
    # the variance of 1, 1.2, .8, 1 is .02
    outcome = r2vpo(row(1, 0, 0, 0), row(0.02, 0.0, NAN, INF), None)
    assert outcome.weights[0].tolist() == pytest.approx([0.9803922, 1, 1, 0], abs=1e-7)
    assert r2vpo(row(1, 0), row(0.5, 0.0), None, penalty=4.0).weights[0].tolist() == pytest.approx([1 / 3, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_r2vpo_is_the_loop(dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("r2vpo", groups, penalty=3.0)
    for n in range(25):
        r, v, w = lists(groups, n, "rewards", "ratio_variance", "where")
        enough = sum(w) >= 2
        weights = [1 / (1 + 3 * x) if enough and m and math.isfinite(x) else 1.0 for x, m in zip(v, w, strict=True)]
        weighs(outcome, n, weights, oracles.standardised(r, w), dtype)
