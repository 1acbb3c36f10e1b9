"""Methods that make their own reward or advantage, or treat right and wrong apart: EMPO, GRPO-CARE, CAPO, EGPO."""

import math

import oracles
import pytest
import torch
from made_up import DTYPES, INF, NAN, agree, called, lists, random_groups, row, weighs

from calibrant.advantages import standardised
from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import METHODS, apply
from calibrant.methods.correctness import binary_verdicts

capo, egpo, empo, grpo_care = (called(METHODS[name]) for name in ("capo", "egpo", "empo", "grpo_care"))

# EMPO


def test_empo_by_hand():
    outcome = empo(torch.tensor([[0, 0, 1, 2]]), None)
    assert outcome.scores["consensus_reward"].tolist() == [[0.5, 0.5, 0.25, 0.25]]
    assert outcome.scores["semantic_entropy"].item() == pytest.approx(1.0397208, abs=1e-6)
    assert outcome.scores["majority_share"].item() == 0.5
    # deviations 0.125, std 0.25 / sqrt(3) = 0.1443376
    assert outcome.advantages[0].tolist() == pytest.approx([0.8654, 0.8654, -0.8654, -0.8654], abs=1e-4)
    assert torch.equal(outcome.base, outcome.advantages) and (outcome.weights == 1).all()


def test_empty_answers_are_never_a_majority():
    clusters, empty = torch.tensor([[0, 0, 0, 1, 1]]), torch.tensor([[True, True, True, False, False]])
    rewards = {
        value: empo(clusters, None, empty, empty_reward=value).scores["consensus_reward"][0].tolist()
        for value in (None, 0.0, -0.5)
    }
    assert rewards[None] == pytest.approx([0.2, 0.2, 0.2, 0.4, 0.4])
    assert rewards[0.0] == pytest.approx([0, 0, 0, 0.4, 0.4])
    assert rewards[-0.5] == pytest.approx([-0.5, -0.5, -0.5, 0.4, 0.4])


def test_the_gates_of_empo():
    clusters = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 0], [0, 0, 0, 1]])
    empty = torch.tensor([[False, False, False, True]]).expand(4, 4)

    def rewards(**options):
        return empo(clusters, None, empty, **options).scores["consensus_reward"].tolist()

    assert rewards(gate="all_distinct", empty_reward=-0.5) == [
        [0, 0, 0, 0],
        [0.5, 0.5, 0.25, -0.5],
        [0.75, 0.75, 0.75, -0.5],
        [0.75, 0.75, 0.75, -0.5],
    ]
    assert rewards(min_majority=0.6) == [[0] * 4, [0] * 4, [0.75] * 3 + [0.25], [0.75] * 3 + [0.25]]
    assert rewards(min_majority=0.6, empty_reward=-0.5)[:2] == [[0, 0, 0, -0.5]] * 2
    # a share that is exactly the smallest allowed one is enough
    tens = torch.tensor([[0] * 7 + [1, 2, 3]])
    assert empo(tens, None, min_majority=0.7).scores["consensus_reward"][0, 0].item() == pytest.approx(0.7)
    # H = 0.5623 and 1.0397: only what lies strictly between the bounds is learned from
    pair = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 2]])
    inside = empo(pair, None, entropy_range=(0.5, 1.0)).advantages
    assert (inside[0] != 0).all() and (inside[1] == 0).all()
    assert (empo(pair, None, entropy_range=(0.0, 9.0)).advantages != 0).all()
    exactly = 1.5 * math.log(2)  # both bounds are excluded
    for bounds in ((exactly, 2.0), (0.9, exactly)):
        assert (empo(pair[1:], None, entropy_range=bounds).advantages == 0).all()


@pytest.mark.parametrize("options", [{}, {"empty_reward": -0.5}, {"gate": "all_distinct", "min_majority": 0.4}])
def test_empo_is_the_loop(options):
    groups = random_groups(40, 4, nan=0.3)
    outcome = apply("empo", groups, **options)
    where, empty = groups.inputs["where"], groups.inputs["empty"]
    for n in range(40):
        chosen = [options.get(k, d) for k, d in (("empty_reward", None), ("gate", None), ("min_majority", 0.0))]
        c, m = groups.inputs["clusters"][n].tolist(), where[n].tolist()
        if not any(m):
            assert (outcome.advantages[n] == 0).all()
            continue
        expected = oracles.consensus_rewards(c, m, empty[n].tolist(), *chosen)
        agree(outcome.scores["consensus_reward"][n], expected, torch.float32)
        agree(outcome.advantages[n], oracles.standardised(expected, m), torch.float32)


def test_empo_reads_no_rewards():
    groups = random_groups()
    blind = Groups(torch.full_like(groups.rewards, NAN), groups.inputs)
    assert torch.equal(apply("empo", blind).advantages, apply("empo", groups).advantages)
    assert (apply("empo", blind).advantages != 0).any()


# GRPO-CARE


def test_care_by_hand():
    # accuracies 1 1 0 1; the mean of .95 .6 .7 is .75
    confidence = row(0.99, 0.6, 0.97, 0.7)
    outcome = grpo_care(row(1, 1, 0, 1), confidence, None, reward_range=(0.0, 1.0))
    assert outcome.scores["consistency_bonus"].tolist() == [[0.5, 0, 0, 0]]
    assert outcome.scores["accurate_confidence"].item() == pytest.approx(0.75)
    assert torch.equal(outcome.advantages, standardised(row(1.5, 1, 0, 1)))
    assert torch.equal(outcome.base, outcome.advantages) and (outcome.weights == 1).all()
    # the same in units of a range of width 2, and added to the sum of all rewards
    wide = grpo_care(row(2, 2, 0, 2), confidence, None, row(3, 2, 0, 2.5))
    assert wide.scores["consistency_bonus"].tolist() == [[1, 0, 0, 0]]
    assert torch.equal(wide.advantages, standardised(row(4, 2, 0, 2.5)))


def test_the_margin_of_care():
    confidence = row(0.8, 0.79, 0.775)  # mean 0.78833

    def paid(margin):
        bonus = grpo_care(row(2, 2, 2), confidence, None, margin=margin).scores["consistency_bonus"]
        return (bonus[0] > 0).tolist()

    assert paid(None) == paid(0) == paid(0.01) == [True, True, False]
    assert paid(0.02) == [True, True, True]


def test_groups_that_are_all_right_learn_from_care_alone():
    assert (apply("grpo", Groups(row(2, 2, 2))).advantages == 0).all()
    assert (grpo_care(row(2, 2, 2), row(0.9, 0.5, 0.5), None).advantages != 0).all()
    assert (grpo_care(row(2, 2, 2), row(0.6, 0.6, 0.6), None, margin=None).advantages == 0).all()


def test_no_answer_gets_no_bonus():
    for confidence in (row(0.0, NAN, 0.5), row(0.0, 0.0, NAN), row(INF, NAN, NAN)):
        paid = grpo_care(row(2, 2, 2), confidence, None).scores["consistency_bonus"] > 0
        assert torch.equal(paid, torch.isfinite(confidence) & (confidence > 0))
    assert (grpo_care(row(0.1, 0.0, 0.0), row(0.9, 0.9, 0.9), None).scores["consistency_bonus"] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("binary", [False, True])
def test_care_is_the_loop(dtype, binary):
    groups = random_groups(60, dtype=dtype, binary=binary)
    outcome = apply("grpo_care", groups, bonus=0.4, margin=0.05, upper=0.8, threshold=0.2)
    for n in range(60):
        r, t, c, w = lists(groups, n, "rewards", "total_rewards", "answer_confidence", "where")
        bonus = oracles.care_bonus([x / 2 for x in r], c, w, 0.4, 0.05, 0.8, 0.2)
        agree(outcome.scores["consistency_bonus"][n], [2 * b for b in bonus], dtype)
        expected = oracles.standardised([x + 2 * b for x, b in zip(t, bonus, strict=True)], w)
        agree(outcome.advantages[n], expected, dtype)


# CAPO

LOGPROBS, RIGHT = row(-0.5, -0.2, -0.9, -0.1), row(1, 1, 0, 0)


def test_capo_by_hand():
    unmasked = {"ref_high": None, "ref_low": None}
    sums = capo(RIGHT, LOGPROBS, LOGPROBS, None)
    assert sums.advantages[0].tolist() == pytest.approx([1.666667, 1.298381, -0.961169, -2.003878], abs=1e-6)
    per_group = capo(RIGHT, LOGPROBS, LOGPROBS, None, normalise="group")
    assert torch.equal(per_group.advantages, sums.advantages / 4)
    assert torch.equal(capo(RIGHT, LOGPROBS, LOGPROBS, None, normalise="pairs").advantages, sums.advantages / 4)
    three = capo(row(1, 1, 1, 0), LOGPROBS, LOGPROBS, None, **unmasked)
    by_pairs = capo(row(1, 1, 1, 0), LOGPROBS, LOGPROBS, None, normalise="pairs", **unmasked)
    torch.testing.assert_close(by_pairs.advantages * 3, three.advantages)
    plain = capo(RIGHT, LOGPROBS, LOGPROBS, None, inverse_tau=False)
    assert plain.advantages[0].tolist() == pytest.approx([1.0, 0.779029, -0.576702, -1.202327], abs=1e-6)
    assert torch.equal(sums.base, sums.advantages) and (sums.weights == 1).all()


def test_the_scores_of_capo():
    # pairs: (-.5, -.9) ranked, (-.5, -.1) not, (-.2, -.9) ranked, (-.2, -.1) not
    scores = capo(RIGHT, LOGPROBS, LOGPROBS, None).scores
    assert scores["correctness_auc"].item() == 0.5
    assert scores["logprob_margin"].item() == pytest.approx((0.4 - 0.4 + 0.7 - 0.1) / 4)
    assert scores["kept_share"].item() == 1.0
    ties = capo(row(1, 1, 0), row(-0.1, -0.3, -0.3), row(-0.1, -0.3, -0.3), None).scores
    assert ties["correctness_auc"].item() == 0.75
    none = capo(row(1, 1, 1), row(-0.1, -0.3, -0.3), row(-9, -9, -9), None).scores
    assert [none[k].item() for k in ("correctness_auc", "logprob_margin", "kept_share")] == [0.5, 0.0, 1.0]


def test_the_reference_masks_improbable_right_and_probable_wrong_rollouts():
    # perplexities 2.6, 2.4, 1.04, 1.06
    reference = -row(2.6, 2.4, 1.04, 1.06).log()
    free = capo(RIGHT, LOGPROBS, reference, None, ref_high=None, ref_low=None).advantages
    masked = capo(RIGHT, LOGPROBS, reference, None)
    assert torch.equal(masked.advantages, free * row(0, 1, 0, 1)) and (free != 0).all()
    assert masked.scores["kept_share"].item() == 0.5
    only_high = capo(RIGHT, LOGPROBS, reference, None, ref_low=None).advantages
    assert torch.equal(only_high, free * row(0, 1, 1, 1))
    swapped = capo(1 - RIGHT, LOGPROBS, reference, None, ref_high=2.5, ref_low=1.05).advantages
    assert (swapped != 0).all()  # wrong ones are improbable, right ones probable: as it should be
    unknown = capo(RIGHT, LOGPROBS, torch.full_like(reference, NAN), None).advantages
    assert torch.equal(unknown, free)


@pytest.mark.parametrize("normalise", ["sum", "group", "pairs"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [True, False])
def test_capo_is_the_loop(normalise, dtype, given):
    groups = random_groups(dtype=dtype, binary=not given)
    if not given:
        del groups.inputs["correct"]
    outcome = apply("capo", groups, tau=0.5, ref_high=2.0, ref_low=3.0, normalise=normalise)
    for n in range(25):
        lp, ref, w = lists(groups, n, "mean_logprob", "ref_mean_logprob", "where")
        right = groups.inputs["correct"][n].tolist() if given else (groups.rewards[n] / 2).tolist()
        agree(outcome.advantages[n], oracles.capo(right, lp, ref, w, 0.5, 2.0, 3.0, normalise), dtype)


def test_graded_capo_is_the_loop_and_the_binary_form():
    groups = random_groups()
    outcome = apply("capo", groups, graded=True, tau=0.7, ref_high=None, ref_low=None)
    for n in range(25):
        agree(outcome.advantages[n], oracles.capo_graded(*lists(groups, n, "rewards", "mean_logprob", "where"), 0.7))
    reference = -row(2.6, 2.4, 1.04, 1.06).log()
    for normalise in ("sum", "group", "pairs"):
        binary, graded = (
            capo(RIGHT, LOGPROBS, reference, None, normalise=normalise, graded=graded) for graded in (False, True)
        )
        assert torch.equal(binary.advantages, graded.advantages) and binary.scores == graded.scores


def test_rounding_is_no_difference_of_grades():
    outcome = capo(row(0.3, 0.3 + 1e-8, 0.3), LOGPROBS[:, :3], LOGPROBS[:, :3], None, graded=True)
    assert (outcome.advantages == 0).all()


def test_capo_sums_to_zero_before_the_mask_and_ignores_a_shift():
    groups = random_groups(nan=0.3)
    for options in ({}, {"graded": True}, {"normalise": "pairs"}):
        free = apply("capo", groups, ref_high=None, ref_low=None, **options)
        assert free.advantages.sum(1).abs().max() < 1e-12 and free.advantages.abs().max() > 0.1
        shifted = Groups(groups.rewards, {**groups.inputs, "mean_logprob": groups.inputs["mean_logprob"] - 3.0})
        again = apply("capo", shifted, ref_high=None, ref_low=None, **options)
        torch.testing.assert_close(again.advantages, free.advantages, rtol=1e-12, atol=1e-12)


def test_likelihoods_out_of_all_proportion_only_saturate():
    logprobs = row(1.7e308, -1.7e308, 0, 0)
    advantages = capo(RIGHT, logprobs, LOGPROBS, None, inverse_tau=False, ref_low=None, ref_high=None).advantages
    assert advantages.tolist() == [[0, 2, -1, -1]]


def test_capo_becomes_the_centred_reward_at_a_high_temperature():
    groups = random_groups(binary=True, nan=0.0)
    rewards = groups.rewards / 2
    logprobs = groups.inputs["mean_logprob"]
    outcome = capo(rewards, logprobs, logprobs * 0, None, tau=1e7, normalise="group", ref_low=None)
    torch.testing.assert_close(2e7 * outcome.advantages, rewards - rewards.mean(1, keepdim=True), rtol=0, atol=1e-6)


# Verdicts, which CAPO and EGPO share


@pytest.mark.parametrize("method", [lambda *a, **k: capo(*a[:2], a[1], *a[2:], **k), egpo], ids=["capo", "egpo"])
class TestVerdicts:
    def test_binary_rewards_are_verdicts(self, method):
        found = [
            method(rewards, LOGPROBS, None).advantages
            for rewards in (2 * RIGHT, RIGHT, 2 * RIGHT - 1, torch.where(row(1, 1, 1, 1) == 1, RIGHT.float(), 0))
        ]
        known = method(RIGHT, LOGPROBS, None, RIGHT).advantages
        assert all(torch.allclose(x.double(), known, atol=1e-3) for x in found)
        assert torch.allclose(method(3 + 4 * RIGHT, LOGPROBS, None, reward_range=(3, 7)).advantages, known, atol=1e-3)
        assert torch.equal(method(RIGHT, LOGPROBS, None, RIGHT.bool()).advantages, known)

    def test_the_ends_of_the_range_come_first(self, method):
        # with the range [-2, 0], a reward of 0 is right
        rewards, logprobs = row(0, 0, -2, -2), LOGPROBS
        first = method(rewards, logprobs, None, reward_range=(-2.0, 0.0)).advantages
        torch.testing.assert_close(first, method(rewards, logprobs, None, RIGHT).advantages)

    def test_partial_credit_is_no_verdict(self, method):
        with pytest.raises(CalibrantError, match=r"needs binary rewards or the input 'correct' \(.*is_correct.*: a"):
            method(row(2, 0.7, 0, 0), LOGPROBS, None)
        with pytest.raises(CalibrantError, match=r"a reward of 1 is neither end of the reward range \[0, 2\]"):
            method(row(2, 1, 0, 0), LOGPROBS, None)
        hidden = torch.tensor([[True, False, True, True]])
        assert method(row(2, 0.7, 0, 0), LOGPROBS, hidden).advantages[0, 1] == 0

    def test_unknown_verdicts_and_odd_ones(self, method):
        assert torch.isfinite(method(RIGHT, LOGPROBS, None, row(1, NAN, 0, NAN)).advantages).all()
        with pytest.raises(CalibrantError, match=r"correct has to be 1, 0 or NaN \(unknown\), got 0.5"):
            method(RIGHT, LOGPROBS, None, row(1, 0.5, 0, 0))


def test_equal_rewards_are_read_by_the_range_before_anything_else():
    where = torch.ones(1, 2, dtype=torch.bool)
    assert binary_verdicts("f", row(0, 0), None, where, (-2.0, 0.0)).tolist() == [[1, 1]]
    assert binary_verdicts("f", row(1, 1), None, where, (1.0, 2.0)).tolist() == [[0, 0]]
    assert binary_verdicts("f", row(1, 1), None, where, (0.0, 2.0)).tolist() == [[1, 1]]
    assert binary_verdicts("f", row(-1, -1), None, where, (0.0, 2.0)).tolist() == [[0, 0]]


def test_capo_offers_the_graded_form():
    with pytest.raises(CalibrantError, match=r"references' in the data.*column correct\), or graded=True"):
        capo(row(2, 0.7, 0, 0), LOGPROBS, LOGPROBS, None)


# EGPO

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


def test_a_deterministic_group_has_weights_of_one():
    assert (egpo(SIGNS, -DOUBT * 0, None).weights == 1).all()
    assert (egpo(SIGNS, row(-0.5, NAN, NAN, NAN), None).weights == 1).all()


def test_the_symmetric_reading_needs_no_verdicts():
    outcome = egpo(row(2, 0.7, 0.1, 0), -DOUBT, None, reading="symmetric", nsr=False)
    assert outcome.weights[0].tolist() == pytest.approx([2, 1, 2, 0.5], abs=1e-4)
