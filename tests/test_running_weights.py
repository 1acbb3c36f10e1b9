"""Weights of a given spread: `running_weights`, and the option `strength` of methods."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import random_groups

from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import METHODS, apply
from calibrant.methods.inputs import UNWEIGHTED
from calibrant.methods.outcome import BASES, Outcome
from calibrant.scorer import flat_weights
from calibrant.weights import LARGEST, running_weights

NAN = math.nan
REFUSED = {"r2vpo": "weighs anew in every pass", "clip_cov": "weights per token"}
WEIGHING = [name for name in METHODS if name not in UNWEIGHTED | set(REFUSED)]
DRAWS = {
    "normal": lambda g: torch.randn(8, 1, generator=g, dtype=torch.float64),
    "Cauchy": lambda g: torch.randn(8, 1, generator=g).double() / torch.randn(8, 1, generator=g),
    "tiny": lambda g: 1e-12 * torch.rand(8, 1, generator=g, dtype=torch.float64),
    "two scales": lambda g: torch.rand(8, 2, generator=g, dtype=torch.float64) ** 8 * torch.tensor([1e-6, 1e6]),
    "one in ten": lambda g: (torch.rand(8, 1, generator=g) < 0.1).double(),
    "eight values": lambda g: torch.randint(8, (8, 1), generator=g).double(),
}


def stream(draw, strength, batches=150, holes=0.1):
    """Weights of the groups that follow a warm-up of 200, holes left out."""
    generator, window, kept = torch.Generator().manual_seed(0), None, []
    for batch in range(batches):
        signals = draw(generator)
        signals[torch.rand(len(signals), generator=generator) < holes] = NAN
        weights, window = running_weights(signals, window, strength)
        assert weights.isfinite().all() and (weights[signals.isnan().any(-1)] == 1).all()
        if batch >= 25:
            kept.append(weights[signals.isfinite().all(-1)])
    return torch.cat(kept)


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", DRAWS)
def test_any_signal_gives_the_spread_that_is_asked_for_and_mean_one(name, strength):
    weights = stream(DRAWS[name], strength)
    assert weights.std(correction=0) / weights.mean() == pytest.approx(strength, rel=0.1)
    assert weights.mean() == pytest.approx(1.0, abs=0.05)
    assert weights.min() > 0 and weights.max() <= LARGEST


def test_a_signal_that_is_rarely_different_falls_short_because_weights_are_bounded():
    rare = stream(lambda g: (torch.rand(8, 1, generator=g) < 0.01).double(), 0.6)
    assert rare.max() <= LARGEST
    assert rare.std() < 0.5


def test_a_slow_drift_leaves_the_mean_near_one():
    drifting, batch = DRAWS["normal"], iter(range(1000))
    weights = stream(lambda g: drifting(g) + next(batch) / 150, 0.3)
    assert weights.mean() == pytest.approx(1.0, abs=0.1)


def test_by_hand():
    # ranks 1/6, 3/6, 5/6; weights proportional to 1, q, q^2 whose deviation over their mean is 0.3
    weights = running_weights(torch.tensor([[5.0], [7.0], [100.0]]), None, 0.3)[0]
    assert weights.mean() == pytest.approx(1.0)
    assert weights.std(correction=0) == pytest.approx(0.3)
    assert weights[1] / weights[0] == pytest.approx((weights[2] / weights[1]).item())


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 1e30])
def test_a_constant_signal_gives_weight_one(value):
    noise = 1 + torch.randn(20, 1, dtype=torch.float64) * 1e-9
    for signals in (torch.full((20, 2), value), value * noise, torch.full((1, 1), value)):
        assert (running_weights(signals, None, 0.5)[0] == 1).all()


@pytest.mark.parametrize("scale", [1e-12, 0.5, 1e12])
def test_weights_do_not_depend_on_the_scale_of_a_signal(scale):
    signals = torch.randn(50, 2, dtype=torch.float64)
    signals[:20, 0] = 1.0
    assert torch.equal(running_weights(signals, None, 0.4)[0], running_weights(signals * scale, None, 0.4)[0])


@given(st.lists(st.floats(), min_size=1, max_size=40), st.floats(0, 3))
@settings(max_examples=200)
def test_weights_are_finite_bounded_and_monotone(values, strength):
    signals = torch.tensor(values, dtype=torch.float64)[:, None]
    weights, window = running_weights(signals, None, strength)
    assert weights.isfinite().all() and (weights > 0).all() and (weights <= max(LARGEST, 1)).all()
    finite = signals[:, 0].isfinite()
    order = signals[finite, 0].argsort()
    assert (weights[finite][order].diff() >= -1e-12).all()
    assert len(window) == finite.sum()
    if strength == 0:
        assert (weights == 1).all()


@pytest.mark.parametrize("name", WEIGHING)
def test_strength_zero_is_the_base_to_the_bit(name):
    groups = random_groups()
    outcome = apply(name, groups, strength=0.0)
    assert (outcome.weights == 1).all()
    assert torch.equal(outcome.advantages, outcome.base)
    if name not in ("egpo", "dgpo"):  # which have advantages of their own
        base = {"seed_grpo": "centred"}.get(name, "standardised")
        assert torch.equal(outcome.base, BASES[base](groups.rewards, groups.where))


@pytest.mark.parametrize("name", WEIGHING)
def test_strength_keeps_the_order_of_the_weights_of_a_method(name):
    groups = random_groups(n=64, nan=0.0)  # the strength of many weights depends on how many rollouts count
    plain, strong = apply(name, groups), apply(name, groups, strength=0.4)
    counts = groups.where & (groups.where.sum(-1) >= 2)[:, None]
    assert strong.weights.isfinite().all()
    assert (strong.weights[groups.where.sum(-1) < 2] == 1).all()
    if len(plain.weights[counts].unique()) > 2 and not {"reward_weight"} & set(plain.scores):  # one signal
        before, after = plain.weights[counts].double(), strong.weights[counts].double()
        assert (after[before.argsort(stable=True)].diff() >= -1e-5).all()
    assert "strength_window" in strong.state


def test_two_signals_have_the_same_share():
    groups = random_groups(n=200, nan=0.0)
    outcome = apply("gcpo_cd", groups, strength=0.5)
    logs = outcome.weights[:, 0].double().log()
    ranks = lambda x: x.argsort().argsort().double()  # noqa: E731
    with_dispersion = torch.corrcoef(torch.stack([ranks(logs), ranks(outcome.scores["reward_dispersion"])]))[0, 1]
    with_geometry = torch.corrcoef(torch.stack([ranks(logs), ranks(-outcome.scores["cosine_dispersion"])]))[0, 1]
    assert with_dispersion > 0.4 and with_geometry > 0.4


def test_the_running_distribution_is_carried_from_step_to_step_and_kept_from_the_method():
    seen = []

    def remembering(rewards, where, state, *, alpha=1.0):
        seen.append(dict(state))
        return Outcome(torch.ones_like(rewards), {}, state={"steps": torch.tensor(len(seen))})

    groups = random_groups(n=4)
    state = apply(remembering, groups, strength=0.2).state
    again = apply(remembering, groups, state, strength=0.2).state
    assert seen[1] == {"steps": torch.tensor(1)}
    assert len(again["strength_window"]) == 2 * len(state["strength_window"])


def test_what_cannot_have_a_strength_is_refused():
    groups = random_groups()
    for name in UNWEIGHTED:
        with pytest.raises(CalibrantError, match="has no weights that strength could set"):
            apply(name, groups, strength=0.3)
    for name, why in REFUSED.items():
        with pytest.raises(CalibrantError, match=why):
            apply(name, groups, strength=0.3)
    with pytest.raises(CalibrantError, match="not both"):
        apply("rd_only", groups, strength=0.3, mean_one=True)
    for strength in (-0.1, NAN, "much"):
        with pytest.raises(CalibrantError, match="strength"):
            apply("rd_only", groups, strength=strength)

    def own(rewards, where, *, strength=1.0):
        return Outcome(torch.ones_like(rewards), {})

    with pytest.raises(CalibrantError, match="'strength' is an argument of apply; rename"):
        apply(own, groups)


@pytest.mark.parametrize("name", sorted(UNWEIGHTED))
def test_methods_without_weights_have_none(name):
    assert (apply(name, random_groups()).weights == 1).all()


def test_weights_that_hardly_differ_are_named():
    method = METHODS["gcpo_bot"]
    assert "hardly differ" in flat_weights(1 + torch.rand(64) / 100, method)
    assert flat_weights(1 + torch.rand(64) / 5, method) is None
    assert flat_weights(torch.ones(63), method) is None
    assert flat_weights(torch.ones(64), METHODS["grpo"]) is None


def test_score_has_the_option_and_says_that_weights_hardly_differ(tmp_path, capsys):
    file = tmp_path / "rollouts.jsonl"
    rows = [
        {"prompt_id": str(i), "completion": str(j), "reward": 1.0 + (i + j) % 2 / 1000 * (1 + i / 70)}
        for i in range(70) for j in range(4)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", str(file), "--method", "rd_only"]) == 0
    assert "the weights of rd_only hardly differ" in capsys.readouterr().out
    assert main(["score", str(file), "--method", "rd_only", "--strength", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "hardly" not in said and "30.0%" in said
    for wrong in (["--strength", "0.3"], ["--method", "rd_only", "--strength", "-1"]):
        assert main(["score", str(file), *wrong]) == 2


def test_groups_without_two_rollouts_have_weight_one():
    groups = Groups(torch.tensor([[0.0, NAN, NAN], [0.0, 1.0, 2.0], [1.0, 1.5, 1.0]]))
    weights = apply("rd_only", groups, strength=0.5).weights
    assert (weights[0] == 1).all() and weights[1, 0] > weights[2, 0]
