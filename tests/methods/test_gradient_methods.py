"""Methods that read the gradients of the output head: numbers by hand, and the loops of oracles."""

import oracles
import pytest
import torch
from builders_methods import groups_of_four
from made_up import DTYPES, INF, NAN, called, lists, random_groups, row, weighs

from calibrant.advantages import standardised
from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import (
    apply,
    gcpo_grad,
    gradient_snr,
    read_inputs,
)


def test_gcpo_of_gradients_by_hand():
    # the mean of (1, 0), (1, 0), (0, 1), (0.6, 0.8) is (0.65, 0.45), |mean|^2 = 0.4225 + 0.2025, mean |g|^2 = 1
    outcome = apply("gcpo_grad", groups_of_four())
    assert outcome.scores["gradient_dispersion"].item() == pytest.approx(0.375)
    assert outcome.weights[0].tolist() == pytest.approx([0.9391363 * 1.3246064] * 4, abs=1e-6)


def test_the_signal_of_four():
    # A = (1.25, -0.75, -0.75, 0.25) but for a factor: a = (1.25, 0), (-0.75, 0), (0, -0.75), (0.15, 0.2)
    # mean (0.1625, -0.1375), |mean|^2 = 0.0453125; sum |a|^2 = 1.5625 + 2 * 0.5625 + 0.0625 = 2.75
    # S^2 = (2.75 - 4 * 0.0453125) / 3 = 0.85625, S^2 / 4 = 0.2140625 > |mean|^2: all is noise
    found = apply("gradient_snr", groups_of_four())
    assert found.weights.tolist() == [[0.0] * 4] and found.advantages.tolist() == [[0.0] * 4]
    assert found.scores["signal_share"].tolist() == [0.0]
    scale = (0.9574271 + 1e-4) ** 2
    assert found.scores["head_variance"].item() == pytest.approx(0.85625 * 3 / 4 / scale, rel=1e-6)
    # at alpha = 0.1: 1 - 0.1 * 0.2140625 / 0.0453125 = 1 - 0.4724138
    weak = apply("gradient_snr", groups_of_four(), alpha=0.1)
    assert weak.weights[0].tolist() == pytest.approx([1 - 0.4724138] * 4, abs=1e-6)
    assert weak.scores["signal_share"].tolist() == [0.0]  # at alpha = 1, whatever alpha is
    both = apply("gradient_snr", groups_of_four(), alpha=0.1, reward_alpha=0.6)
    assert both.scores["reward_weight"].item() == pytest.approx(1.3246064, abs=1e-6)
    assert both.weights[0].tolist() == pytest.approx([0.5275862 * 1.3246064] * 4, abs=1e-6)
    assert list(found.scores) == ["signal_share", "head_variance"]
    assert list(both.scores) == ["signal_share", "head_variance", "reward_dispersion", "reward_weight"]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_signal_is_that_of_the_loop(alpha, dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("gradient_snr", groups, alpha=alpha, reward_alpha=0.9, reward_range=(0.0, 2.5))
    seen = set()
    for n in range(25):
        r, k, w = lists(groups, n, "rewards", "head_gram", "where")
        base = oracles.standardised(r, w)
        share = oracles.signal_share(k, base, w, alpha)
        weight = share * oracles.gcpo_weight(0.0, oracles.reward_dispersion(r, w, 0.0, 2.5), sum(w), 0.9)
        weighs(outcome, n, [weight] * 6, base, dtype)
        seen.add("all" if share == 1 else "none" if share == 0 else "some")
    assert seen >= {"none", "some"}


def test_gradients_that_say_nothing_leave_the_advantage_alone():
    rewards = row(2, 0, 1, 0).expand(4, 4).clone()
    rewards[3] = 0.3
    gram = torch.eye(4).double().expand(4, 4, 4).clone()
    gram[0] = 0.0  # empty completions: no noise
    gram[1] = NAN
    gram[2, 1:, 1:] = NAN  # a single gradient that is known
    found = called(gradient_snr)(rewards, gram, None)
    assert found.weights.tolist() == [[1.0] * 4] * 4
    assert torch.equal(found.advantages, standardised(rewards, ~rewards.isnan()))
    assert (found.advantages[3] == 0).all() and found.scores["head_variance"].tolist() == [0.0] * 4
    dispersion = gcpo_grad(rewards, gram, None).scores["gradient_dispersion"]
    assert dispersion.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.75])


def test_a_rollout_without_a_finite_gradient_is_left_out_of_the_weight_alone():
    groups = random_groups(nan=0.0)
    gram = groups.inputs["head_gram"].clone()
    spoiled, without = gram.clone(), torch.ones(25, 6).bool()
    spoiled[:, 2], spoiled[:, :, 2], without[:, 2] = INF, NAN, False
    base = standardised(groups.rewards, torch.ones(25, 6).bool())
    found = called(gradient_snr)(groups.rewards, spoiled, None)
    expected = [
        oracles.signal_share(k, a, w) for k, a, w in zip(*(x.tolist() for x in (gram, base, without)), strict=True)
    ]
    assert found.weights[:, 0].tolist() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(found.advantages, base * found.weights)


@pytest.mark.parametrize("name", ["gcpo_grad", "gradient_snr"])
def test_the_last_block_in_place_of_the_head(name):
    groups = random_groups()
    gram = groups.inputs["head_gram"]
    without = {key: x for key, x in groups.inputs.items() if key not in ("head_gram", "block_gram")}
    groups = Groups(groups.rewards, without | {"head_gram": gram})
    other = Groups(groups.rewards, without | {"block_gram": gram})
    head, block = apply(name, groups), apply(name, other, depth="block")
    assert torch.equal(head.weights, block.weights) and head.weights.std() > 0
    assert [score.replace("head_", "block_") for score in head.scores] == list(block.scores)
    assert set(read_inputs(name)) - set(read_inputs(name, {"depth": "block"})) == {"head_gram"}
    assert set(read_inputs(name, {"depth": "block"})) - set(read_inputs(name)) == {"block_gram"}
    with pytest.raises(CalibrantError, match=f"{name} needs the input 'block_gram' .*last block"):
        apply(name, groups, depth="block")
    with pytest.raises(CalibrantError, match="depth has to be"):
        apply(name, groups, depth="neck")


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"alpha": INF}, {"reward_alpha": -0.1}, {"reward_alpha": NAN}])
def test_strengths_of_the_shrinkage_that_cannot_be(options):
    with pytest.raises(CalibrantError, match=f"{next(iter(options))} has to be a finite number of at least 0"):
        gradient_snr(row(2, 0), torch.eye(2)[None], None, **options)
    with pytest.raises(CalibrantError, match="G is 2 in rewards and 3 in head_gram"):
        gradient_snr(row(2, 0), torch.eye(3)[None], None)
