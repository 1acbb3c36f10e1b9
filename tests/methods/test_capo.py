"""CAPO, and the verdicts that it reads from rewards."""

import oracles
import pytest
import torch
from made_up import DTYPES, NAN, agree, called, lists, random_groups, row

from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import METHODS, apply
from calibrant.methods.verdicts import binary_verdicts

capo, egpo, empo, grpo_care = (called(METHODS[name]) for name in ("capo", "egpo", "empo", "grpo_care"))
LOGPROBS, RIGHT = row(-0.5, -0.2, -0.9, -0.1), row(1, 1, 0, 0)
PAPER = {"ref_high": 2.5, "ref_low": 1.05}  # the bounds of the paper's base model


def test_capo_by_hand():
    unmasked = {"ref_high": None, "ref_low": None}
    sums = capo(RIGHT, LOGPROBS, LOGPROBS, None, **PAPER)
    assert sums.advantages[0].tolist() == pytest.approx([1.666667, 1.298381, -0.961169, -2.003878], abs=1e-6)
    per_group = capo(RIGHT, LOGPROBS, LOGPROBS, None, normalise="group", **PAPER)
    assert torch.equal(per_group.advantages, sums.advantages / 4)
    assert torch.equal(
        capo(RIGHT, LOGPROBS, LOGPROBS, None, normalise="pairs", **PAPER).advantages, sums.advantages / 4
    )
    three = capo(row(1, 1, 1, 0), LOGPROBS, LOGPROBS, None, **unmasked)
    by_pairs = capo(row(1, 1, 1, 0), LOGPROBS, LOGPROBS, None, normalise="pairs", **unmasked)
    torch.testing.assert_close(by_pairs.advantages * 3, three.advantages)
    plain = capo(RIGHT, LOGPROBS, LOGPROBS, None, inverse_tau=False, **PAPER)
    assert plain.advantages[0].tolist() == pytest.approx([1.0, 0.779029, -0.576702, -1.202327], abs=1e-6)
    assert torch.equal(sums.base, sums.advantages) and (sums.weights == 1).all()


def test_the_scores_of_capo():
    # pairs: (-.5, -.9) ranked, (-.5, -.1) not, (-.2, -.9) ranked, (-.2, -.1) not
    scores = capo(RIGHT, LOGPROBS, LOGPROBS, None, **PAPER).scores
    assert scores["correctness_auc"].item() == 0.5
    assert scores["logprob_margin"].item() == pytest.approx((0.4 - 0.4 + 0.7 - 0.1) / 4)
    assert scores["kept_share"].item() == 1.0
    ties = capo(row(1, 1, 0), row(-0.1, -0.3, -0.3), row(-0.1, -0.3, -0.3), None, **PAPER).scores
    assert ties["correctness_auc"].item() == 0.75
    none = capo(row(1, 1, 1), row(-0.1, -0.3, -0.3), row(-9, -9, -9), None, **PAPER).scores
    assert [none[k].item() for k in ("correctness_auc", "logprob_margin", "kept_share")] == [0.5, 0.0, 1.0]


def test_the_reference_masks_improbable_right_and_probable_wrong_rollouts():
    # perplexities 2.6, 2.4, 1.04, 1.06
    reference = -row(2.6, 2.4, 1.04, 1.06).log()
    free = capo(RIGHT, LOGPROBS, reference, None, ref_high=None, ref_low=None).advantages
    masked = capo(RIGHT, LOGPROBS, reference, None, **PAPER)
    assert torch.equal(masked.advantages, free * row(0, 1, 0, 1)) and (free != 0).all()
    assert masked.scores["kept_share"].item() == 0.5
    only_high = capo(RIGHT, LOGPROBS, reference, None, ref_high=2.5, ref_low=None).advantages
    assert torch.equal(only_high, free * row(0, 1, 1, 1))
    swapped = capo(1 - RIGHT, LOGPROBS, reference, None, **PAPER).advantages
    assert (swapped != 0).all()  # wrong ones are improbable, right ones probable: as it should be
    unknown = capo(RIGHT, LOGPROBS, torch.full_like(reference, NAN), None, **PAPER).advantages
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
            capo(RIGHT, LOGPROBS, reference, None, normalise=normalise, graded=graded, **PAPER)
            for graded in (False, True)
        )
        assert torch.equal(binary.advantages, graded.advantages) and binary.scores == graded.scores


def test_automatic_bounds_are_quartiles_of_the_reference_at_the_start_of_a_run():
    perplexities = [(1.2, 1.6, 2.0, 2.4, 9.0), (1.01, 1.05, 1.1, 1.2, 3.0)]  # of right and of wrong rollouts
    rewards, reference = row(*[1] * 5, *[0] * 5), -row(*perplexities[0], *perplexities[1]).log()
    first = METHODS["capo"](rewards, reference, reference, None, bound_rollouts=20)
    assert first.scores["ref_high"].item() == pytest.approx(2.4)  # a quarter of the right ones is above
    assert first.scores["ref_low"].item() == pytest.approx(1.05)  # a quarter of the wrong ones is below
    kept = [True, True, True, True, False, False, True, True, True, True]
    assert (first.base[0] != 0).tolist() == kept and first.scores["kept_share"].item() == 0.8
    second = METHODS["capo"](rewards, reference, reference - 1.0, None, state=first.state, bound_rollouts=20)
    assert [len(x) for x in second.state.values()] == [10, 10] and second.scores["ref_high"] > 2.4
    third = METHODS["capo"](rewards, reference, reference - 5.0, None, state=second.state, bound_rollouts=20)
    for name, seen in second.state.items():  # twenty are enough: the bounds no longer move
        assert torch.equal(third.state[name], seen)
    assert torch.equal(third.scores["ref_high"], second.scores["ref_high"])
    assert METHODS["capo"](rewards, reference, reference, None, **PAPER).state is None


def test_bounds_that_are_neither_numbers_nor_automatic_are_refused():
    with pytest.raises(CalibrantError, match="ref_low has to be one of 'auto', got 'quartile'"):
        capo(RIGHT, LOGPROBS, LOGPROBS, None, ref_low="quartile")
    with pytest.raises(CalibrantError, match="ref_high has to be a finite number above 0"):
        capo(RIGHT, LOGPROBS, LOGPROBS, None, ref_high=0.0)
    unseen = capo(RIGHT, LOGPROBS, torch.full_like(LOGPROBS, NAN), None)  # no reference: no mask
    assert (unseen.advantages != 0).all() and unseen.scores["ref_high"].item() == unseen.scores["ref_low"].item() == 0


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
    with pytest.raises(CalibrantError, match=r"data column 'references'.*column correct\), or graded=True"):
        capo(row(2, 0.7, 0, 0), LOGPROBS, LOGPROBS, None)
