"""EGPO."""

import oracles
import pytest
import torch
from made_up import DTYPES, NAN, called, lists, random_groups, row, weighs

from calibrant.advantages import standardised
from calibrant.methods import METHODS, apply

capo, egpo, empo, grpo_care = (called(METHODS[name]) for name in ("capo", "egpo", "empo", "grpo_care"))
DOUBT, SIGNS = row(0.2, 0.4, 0.2, 0.8), row(1, 1, -1, -1)


def test_egpo_by_hand():
    # w^ = [2, 1, 2, 0.5]
    outcome = egpo(SIGNS, -DOUBT, None)
    assert outcome.scores["certainty_ratio"][0].tolist() == pytest.approx([2, 1, 2, 0.5], abs=1e-4)
    assert outcome.weights[0].tolist() == pytest.approx([2, 1, 1, 0.5], abs=1e-4)
    assert outcome.advantages[0].tolist() == pytest.approx([1.731901, 0.865950, -0.865950, -0.432975], abs=1e-5)
    assert outcome.scores["nsr"].item() == 0


def test_the_readings_of_egpo():
    def weights(**options):
        return egpo(SIGNS, -DOUBT, None, **options).weights[0].tolist()

    assert weights(reading="symmetric") == pytest.approx([2, 1, 2, 0.5], abs=1e-4)
    # H_i / H = [.5, 1, .5, 2]: right at least 1, wrong at most 1
    assert weights(reading="reversed") == pytest.approx([1, 1, 0.5, 1], abs=1e-4)
    assert weights(low=0.8, high=1.5) == pytest.approx([1.5, 1, 1, 0.8], abs=1e-4)
    assert weights(low=1.0, high=1.0) == [1, 1, 1, 1]


def test_renormalised_egpo():
    groups = random_groups(binary=True, nan=0.0)
    del groups.inputs["correct"]
    plain, mean, l1 = (apply("egpo", groups, renormalise=how) for how in ("none", "weight_mean", "l1"))
    counted = groups.where.double()
    average = (plain.weights * counted).sum(1) / counted.sum(1)
    enough = groups.where.sum(1) >= 2
    torch.testing.assert_close(
        ((mean.weights * counted).sum(1) / counted.sum(1))[enough], torch.ones(25).double()[enough]
    )
    torch.testing.assert_close((mean.weights * average[:, None] * counted)[enough], (plain.weights * counted)[enough])
    base = standardised(groups.rewards, groups.where)
    informative = (base != 0).any(1)
    torch.testing.assert_close(l1.advantages.abs().sum(1)[informative], base.abs().sum(1)[informative])
    assert (plain.advantages.abs().sum(1) - base.abs().sum(1)).abs().max() > 0.1


@pytest.mark.parametrize("reading", ["asymmetric", "symmetric", "reversed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_egpo_is_the_loop(reading, dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("egpo", groups, reading=reading, low=0.7, high=1.6)
    assert not outcome.scores["nsr"].any()
    for n in range(25):
        r, lp, right, w = lists(groups, n, "rewards", "mean_logprob", "correct", "where")
        weights = oracles.egpo_weights(lp, right, w, 0.7, 1.6, reading=reading)
        weighs(outcome, n, weights, oracles.standardised(r, w), dtype)


def test_right_is_never_damped_and_wrong_never_amplified():
    groups = random_groups(400, nan=0.1)
    for reading in ("asymmetric", "reversed"):
        weights, correct = apply("egpo", groups, reading=reading).weights, groups.inputs["correct"]
        assert (weights[correct == 1] >= 1).all() and (weights[correct == 0] <= 1).all()
        assert (weights[correct == 1] > 1).any() and (weights[correct == 0] < 1).any()
        assert (weights[correct.isnan()] == 1).all()


def test_groups_that_are_all_wrong_are_pushed_down():
    rewards = torch.cat([row(-1, -1, -1, NAN), SIGNS, SIGNS, row(1, 1, 1, 1)])
    outcome = egpo(rewards, -DOUBT.expand(4, 4), None)
    # mean of .2 .4 .2 is .26667, ratios 1.33 0.667 1.33: wrong ones at most 1
    assert outcome.advantages[0].tolist() == pytest.approx([-1, -2 / 3, -1, 0], abs=1e-5)
    own = METHODS["egpo"](rewards, -DOUBT.expand(4, 4), None)
    assert own.replaced.tolist() == [[True, True, True, False]] + [[False] * 4] * 3
    assert outcome.scores["nsr"].tolist() == [1, 0, 0, 0] and (outcome.advantages[3] == 0).all()
    assert (egpo(rewards, -DOUBT.expand(4, 4), None, nsr=False).advantages[0] == 0).all()


def test_who_is_not_pushed_down():
    wrong, logprobs = row(0, 0, 0, 0), -DOUBT
    assert (egpo(row(0, NAN, NAN, NAN), logprobs, None).advantages == 0).all()  # one rollout alone
    assert not egpo(wrong, logprobs, None, row(0, 0, NAN, 0)).scores["nsr"].any()  # unknown is not wrong
    graded = egpo(row(0.2, 0, 0, 0), logprobs, None, wrong)  # differences of reward are a signal
    assert not graded.scores["nsr"].any() and (graded.advantages != 0).all()
    assert not egpo(wrong, logprobs, None, total_rewards=row(0, 0, 0.5, 0)).scores["nsr"].any()
    assert egpo(wrong, logprobs, None, total_rewards=row(0.5, 0.5, 0.5, 0.5)).scores["nsr"].all()


def test_groups_that_are_all_wrong_count_as_no_more_than_their_share():
    def pushed(share, wrong, others=0):
        rewards = torch.cat([row(0, 0, 0, 0)] * wrong + [row(2, 2, 0, 0)] * others)
        outcome = egpo(rewards, torch.full_like(rewards, -0.5), None, nsr_share=share)
        assert outcome.scores["nsr"].sum() == wrong
        return -outcome.advantages[:wrong].mean(1).sum().item()

    assert pushed(0.5, 3, 5) == pytest.approx(3, rel=1e-4)  # 3 <= 4
    assert pushed(0.5, 6, 2) == pytest.approx(4, rel=1e-4)
    assert pushed(0.5, 5) == pytest.approx(2, rel=1e-4)  # floor(2.5)
    assert pushed(0.0, 5, 3) == pushed(0.1, 5, 3) == pytest.approx(1, rel=1e-4)  # at least one
    assert pushed(1.0, 5) == pytest.approx(5, rel=1e-4)
    assert pushed(None, 5) == pytest.approx(5, rel=1e-4)  # the paper has no cap


def test_all_wrong_groups_are_not_capped_by_default():
    outcome = egpo(row(0, 0, 0, 0), -DOUBT * 0 - 0.5, None)
    assert outcome.advantages[0].tolist() == pytest.approx([-1.0] * 4, rel=1e-4)
    many = egpo(torch.zeros(8, 4, dtype=torch.float64), torch.full((8, 4), -0.5), None)
    assert (many.advantages + 1).abs().max() < 1e-4


def test_a_deterministic_group_has_weights_of_one():
    assert (egpo(SIGNS, -DOUBT * 0, None).weights == 1).all()
    assert (egpo(SIGNS, row(-0.5, NAN, NAN, NAN), None).weights == 1).all()


def test_the_symmetric_reading_needs_no_verdicts():
    outcome = egpo(row(2, 0.7, 0.1, 0), -DOUBT, None, reading="symmetric", nsr=False)
    assert outcome.weights[0].tolist() == pytest.approx([2, 1, 2, 0.5], abs=1e-4)
