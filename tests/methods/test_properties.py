"""What holds for every method, whatever it computes."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import DTYPES, INF, NAN, random_groups, row

from calibrant.groups import Groups, has_spread
from calibrant.methods import METHODS, apply, card, hyperparameters, optional_inputs, required_inputs
from calibrant.methods.outcome import BASES

BASE = {"dr_grpo": "centred", "seed_grpo": "centred", "rloo": "leave_one_out", "dgpo": "mean_deviation"}

REPLACING = ["empo", "grpo_care", "capo", "gtpo"]
PER_TOKEN = ["clip_cov", "kl_cov", "gtpo"]
OF_THE_BATCH = ["ha_dw", "dgpo", "clip_cov", "kl_cov"]  # a group's weight depends on other groups
WEIGHING = [name for name in METHODS if name not in REPLACING]
MEAN_ONE = [name for name in METHODS if "mean_one" in hyperparameters(name)]
NEUTRAL = {
    **{name: {"alpha": 0.0} for name in WEIGHING if "alpha" in hyperparameters(name)},
    "egpo": {"low": 1.0, "high": 1.0, "nsr": False},
    "edge_grpo": {"low": 1.0, "high": 1.0},
    "eg_spo": {"phi": 1.0},
    "r2vpo": {"penalty": 0.0},
    "ha_dw": {"scale": 1.0, "alpha": 0.0},
    "clip_cov": {"share": 0.0},
    "kl_cov": {"share": 0.0},
}
TOKEN_FORMS = {"eg_spo": {"level": "token", "phi": 1.0}, "gtpo": {"form": "weight", "alpha": 0.0}}
"""Options that make a method the plain advantage of its base."""


def chosen(groups, keep):
    """Groups of some of the rollouts, in some order."""
    inputs = {name: x[:, keep] for name, x in groups.inputs.items()}
    inputs["entailment"] = inputs["entailment"][:, :, keep]
    for name in ("head_gram", "block_gram"):
        inputs[name] = inputs[name][:, :, keep]
    return Groups(groups.rewards[:, keep], inputs)


def base_of(name, groups, like):
    """The plain advantages, in the shape of others."""
    base = BASES[BASE.get(name, "standardised")](groups.rewards, groups.where)
    return base[..., None].expand(like.shape) if like.ndim > 2 else base


def parts(outcome):
    return {"advantages": outcome.advantages, "weights": outcome.weights, **outcome.scores}


def pushed_down(outcome, where):
    """Rollouts that have an advantage of EGPO's own instead of the standardised one."""
    return outcome.scores.get("nsr", torch.zeros(len(where))).bool()[:, None] & where


def same(found, expected, rtol=1e-9):
    torch.testing.assert_close(parts(found), parts(expected), rtol=rtol, atol=1e-9)


def test_each_way_of_weighing_is_covered():
    assert set(NEUTRAL) | {"grpo", "dr_grpo", "rloo"} == set(WEIGHING)
    assert set(MEAN_ONE) == set(NEUTRAL) - {"egpo", *PER_TOKEN}


@pytest.mark.parametrize(("name", "options"), [*NEUTRAL.items(), *TOKEN_FORMS.items()])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_without_strength_a_method_is_its_base_to_the_bit(name, options, dtype):
    groups = random_groups(dtype=dtype)
    groups.inputs["ratio_variance"][0, 0] = INF
    extra = [{"mean_one": True}] * (name in MEAN_ONE) + [{"renormalise": "weight_mean"}] * (name == "egpo")
    for more in ({}, *extra):
        outcome = apply(name, groups, **options, **more)
        base = base_of(name, groups, outcome.weights)
        assert torch.equal(outcome.advantages, base) and torch.equal(outcome.weights, torch.ones_like(base))
        assert outcome.advantages.dtype == outcome.weights.dtype == dtype


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_have_the_type_of_the_rewards(name, dtype):
    expected = torch.float32 if name == "empo" else dtype  # which reads integers alone
    assert {x.dtype for x in parts(apply(name, random_groups(dtype=dtype))).values()} == {expected}


@pytest.mark.parametrize("name", METHODS)
def test_advantages_are_the_base_times_the_weights_unless_they_are_replaced(name):
    groups = random_groups(binary=True, nan=0.0)
    groups.rewards[:3] = 0.0
    groups.inputs["correct"][:3] = groups.inputs["total_rewards"][:3] = 0.0
    outcome = apply(name, groups)
    if name in REPLACING:
        assert torch.equal(outcome.base, outcome.advantages) and (outcome.weights == 1).all()
        return
    product = base_of(name, groups, outcome.weights) * outcome.weights
    own = pushed_down(outcome, groups.where)
    if name == "kl_cov":  # one token of all, the largest covariance, has an advantage of its own
        assert ((outcome.advantages - product).abs() > 1e-9).sum() == 1
        return
    assert torch.equal(outcome.advantages[~own], product[~own])
    assert own.any() == (name == "egpo") and (outcome.advantages[own] < 0).all()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "clip_cov"])  # which draws
@pytest.mark.parametrize("binary", [False, True])
def test_the_order_of_rollouts_only_reorders(name, binary):
    groups, order = random_groups(nan=0.1, binary=binary), torch.tensor([3, 0, 5, 1, 4, 2])
    outcome, moved = apply(name, groups), apply(name, chosen(groups, order))
    reordered = {k: x[:, order] if x.ndim >= 2 else x for k, x in parts(outcome).items()}
    torch.testing.assert_close(parts(moved), reordered, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_what_does_not_count_is_as_good_as_dropped(name):
    groups = random_groups(nan=0.0)
    where = torch.ones_like(groups.where)
    where[:, [1, 4]] = False
    groups.inputs["where"] = torch.ones_like(where)
    garbage = {k: x.clone() for k, x in groups.inputs.items()} | {"where": where}
    for x in garbage.values():
        if x.is_floating_point():
            x[:, [1, 4]] = 7.0
    garbage["correct"][:, [1, 4]] = 0.0
    garbage["clusters"][:, [1, 4]] = 0
    keep = torch.tensor([0, 2, 3, 5])
    whole, part = apply(name, Groups(groups.rewards, garbage)), apply(name, chosen(groups, keep))
    kept = {k: x[:, keep] if x.ndim >= 2 else x for k, x in parts(whole).items()}
    torch.testing.assert_close(kept, parts(part), rtol=1e-9, atol=1e-9)
    assert (whole.advantages[:, [1, 4]] == 0).all()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "empo"])
def test_an_unscorable_rollout_is_one_that_does_not_count(name):
    groups = random_groups(nan=0.0)
    groups.inputs["where"][:] = True
    unscorable, excluded = groups.rewards.clone(), torch.ones_like(groups.where)
    unscorable[:, [1, 4]], excluded[:, [1, 4]] = NAN, False
    found = apply(name, Groups(unscorable, groups.inputs))
    same(found, apply(name, Groups(groups.rewards, {**groups.inputs, "where": excluded})))
    assert (found.advantages[:, [1, 4]] == 0).all()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in OF_THE_BATCH])
def test_groups_do_not_see_each_other(name):
    groups = random_groups(12)
    alone_too = {"ref_high": 2.5, "ref_low": 1.05} if name == "capo" else {}
    whole = parts(apply(name, groups, **alone_too))
    for n in range(12):
        inputs = {k: x[n : n + 1] for k, x in groups.inputs.items()}
        alone = parts(apply(name, Groups(groups.rewards[n : n + 1], inputs), **alone_too))
        torch.testing.assert_close(alone, {k: x[n : n + 1] for k, x in whole.items()}, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in WEIGHING if name != "kl_cov"])  # whose penalty remains
def test_equal_rewards_and_single_rollouts_teach_nothing(name):
    rewards = torch.tensor([[0.3] * 6, [NAN] * 6, [1.0] + [NAN] * 5])
    groups = random_groups(3)
    groups.inputs["correct"][:, 0] = 1.0
    groups.inputs["where"][:] = True
    outcome = apply(name, Groups(rewards, groups.inputs))
    assert (outcome.advantages == 0).all() and (outcome.weights[1:] == 1).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 1), (1, 2)])
def test_small_shapes(name, shape):
    groups = random_groups(*shape, nan=0.0, binary=True)
    outcome = apply(name, groups)
    assert outcome.advantages.shape == outcome.weights.shape and outcome.weights.shape[:2] == shape
    assert all(score.shape in (shape, shape[:1]) for score in outcome.scores.values())
    if shape[1] == 1:
        assert (outcome.advantages == 0).all() and (outcome.weights == 1).all()


@pytest.mark.parametrize("name", MEAN_ONE)
def test_mean_one_removes_the_mean_weight(name):
    groups = random_groups(60, 4, nan=0.4)
    assert {0, 1, 2, 3} <= set(groups.where.sum(1).tolist())
    plain, scaled = apply(name, groups), apply(name, groups, mean_one=True)
    counted = groups.where & (groups.where.sum(1) >= 2)[:, None]
    mean = plain.weights[counted].mean()
    assert mean.item() != pytest.approx(1.0, abs=1e-3)
    assert scaled.weights[counted].mean().item() == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(scaled.advantages * mean, plain.advantages, rtol=1e-12, atol=1e-12)
    assert (scaled.weights[groups.where.sum(1) < 2] == 1).all()


@pytest.mark.parametrize("name", METHODS)
def test_outcomes_are_detached_and_inputs_unchanged(name):
    groups = random_groups(nan=0.0)
    given = {**groups.inputs, "rewards": groups.rewards}
    live = {k: x.clone().requires_grad_() if x.is_floating_point() else x.clone() for k, x in given.items()}
    outcome = METHODS[name](**{k: live[k] for k in (*required_inputs(name), *optional_inputs(name))})
    tensors = [outcome.weights, outcome.base, *outcome.scores.values()]
    assert not any(x.requires_grad for x in tensors if isinstance(x, torch.Tensor))
    torch.testing.assert_close({k: x.detach() for k, x in live.items()}, given, rtol=0, atol=0, equal_nan=True)


SIGNED = [name for name in WEIGHING if name != "kl_cov"]


def hostile(n, size, seed, nan):
    """Every input with gaps, infinities and numbers that are out of all proportion."""
    groups = random_groups(n, size, seed=seed, nan=nan)
    generator = torch.Generator().manual_seed(seed + 1)
    odd = torch.tensor([NAN, INF, -INF, 1e300, -1e300, 0.0, 0.0, 5e-324], dtype=torch.float64)
    for name, x in groups.inputs.items():
        if x.is_floating_point() and name != "correct":
            spoiled = torch.rand(n, size, generator=generator) < nan
            x[spoiled] = odd[torch.randint(len(odd), x[spoiled].shape, generator=generator)]
    values = torch.tensor([0.0, 2.0, 0.3, 0.3, NAN, INF, -INF, 1e300, -5.0], dtype=torch.float64)
    return Groups(values[torch.randint(len(values), (n, size), generator=generator)], groups.inputs)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in METHODS), *TOKEN_FORMS.items()])
def test_ten_thousand_hostile_groups(name, options):
    groups = hostile(10_000, 5, 0, 0.4)
    outcome = apply(name, groups, **{k: 0.3 if k in ("phi", "alpha") else x for k, x in options.items()})
    assert all(torch.isfinite(x).all() for x in parts(outcome).values())
    counted = groups.inputs["where"] if name == "empo" else groups.where
    assert (outcome.weights >= 0).all() and (outcome.advantages[~counted] == 0).all()


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**31), st.integers(1, 7), st.floats(0, 1), st.sampled_from(SIGNED), st.booleans())
def test_signs_are_kept_whatever_comes(seed, size, nan, name, mean_one):
    groups = hostile(6, size, seed, nan)
    outcome = apply(name, groups, **({"mean_one": mean_one} if name in MEAN_ONE else {}))
    plain = base_of(name, groups, outcome.advantages)
    own = pushed_down(outcome, groups.where)
    assert (outcome.advantages * plain >= 0)[~own].all()
    assert (own & has_spread(groups.rewards, groups.where)[:, None]).sum() == 0
    assert all(torch.isfinite(x).all() for x in parts(outcome).values())


# The range of a weight that a card states


def ranges(name):
    """The ranges `x [a, b]` of a card, each with half a unit of the last digit."""
    pairs = re.findall(r"x \[([\d.]+), ([\d.]+)\]", card(name).effect)
    digits = [len(max(pair, key=len).partition(".")[2]) for pair in pairs]
    return [(float(low), float(high), 0.5 * 0.1**places) for (low, high), places in zip(pairs, digits, strict=True)]


def sixteen():
    """Groups of 16 at the ends of what signals can be, and random ones."""
    groups = random_groups(300, 16, nan=0.05)
    inputs = groups.inputs
    groups.rewards[0:40] = row(*[0.0, 2.0] * 8)
    groups.rewards[20:40, 1:] = 0.0
    inputs["where"][0:40] = True
    inputs["embeddings"] = torch.nn.functional.pad(inputs["embeddings"], (0, 11))
    inputs["embeddings"][0:10], inputs["clusters"][0:10] = torch.eye(16).double(), torch.arange(16)
    inputs["embeddings"][10:20], inputs["clusters"][10:20] = 1.0, 0
    inputs["embeddings"][20:30] = torch.eye(16)[:1].double() * row(*[1.0, -1.0] * 8)[0][:, None]
    inputs["clusters"][20:30] = torch.arange(16) % 2
    inputs["entailment"][0:10] = torch.tensor([1.0, 0, 0]).double()
    inputs["entailment"][10:20] = torch.tensor([0, 0, 1.0]).double()
    signs = row(*[1.0, -1.0] * 8)  # gradients that cancel, and agree once they are times their advantages
    inputs["head_gram"][0:10], inputs["head_gram"][10:20] = signs.mT @ signs, 1.0
    inputs["mean_logprob"][0:10], inputs["mean_logprob"][10:20] = -0.7, row(-0.001, *[-2.0] * 15)
    inputs["correct"][10:20] = row(1, 1, *[0.0] * 14)
    inputs["mean_logprob"][15:20] = row(-20.0, -0.1, -20.0, *[-0.1] * 13)
    inputs["mean_logprob"][30:40], inputs["correct"][30:40] = 0.0, row(*[1, 0] * 8)  # certain, and right half the time
    inputs["correct"][40:50], inputs["where"][40:50], groups.rewards[40:50] = 0.0, True, row(*[0.0, 2.0] * 8)
    inputs["token_entropy"][0:10] = row(0.0, 30.0, *[0.01] * 14)
    inputs["ratio_variance"][0:10] = row(0.0, 1e9, INF, *[0.1] * 13)
    return groups


@pytest.mark.parametrize("name", [name for name in METHODS if ranges(name)])
def test_the_range_of_a_card_is_kept_and_reached(name):
    stated, outcome = ranges(name), apply(name, sixteen())
    if len(stated) == 1:
        found = [outcome.weights]
    else:
        found = [outcome.scores["geometric_weight"], outcome.scores["reward_weight"]]
    for (low, high, unit), weights in zip(stated, found, strict=True):
        assert low - unit <= weights.min() <= low + 2 * unit
        assert high - 2 * unit <= weights.max() <= high + unit


def test_which_cards_state_a_range():
    assert {name for name in METHODS if ranges(name)} == set(NEUTRAL) - {"ha_dw", "dgpo", "clip_cov", "kl_cov"}
