"""Methods with a reward of their own, EMPO and GRPO-CARE."""

import math

import oracles
import pytest
import torch
from made_up import DTYPES, INF, NAN, agree, called, lists, random_groups, row

from calibrant.advantages import standardised
from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import METHODS, apply, read_inputs

capo, egpo, empo, grpo_care = (called(METHODS[name]) for name in ("capo", "egpo", "empo", "grpo_care"))


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


def test_care_by_agreement_by_hand():
    # of three others: 2 2 2 0 agree; all accurate, mean 1/2
    clusters = torch.tensor([[5, 5, 5, 1]])
    outcome = grpo_care(row(2, 2, 0, 2), None, None, clusters=clusters, form="agreement")
    # accurate: 1, 2 and 4, with shares 2/3 2/3 0, mean 4/9
    assert outcome.scores["accurate_confidence"].item() == pytest.approx(4 / 9)
    assert outcome.scores["consistency_bonus"].tolist() == [[1, 1, 0, 0]]
    assert torch.equal(outcome.advantages, standardised(row(3, 3, 0, 2)))
    for form, name in (("agreement", "clusters"), ("likelihood", "answer_confidence")):
        with pytest.raises(CalibrantError, match=f"grpo_care needs the input '{name}'"):
            grpo_care(row(2, 0), None, None, form=form)


def test_care_by_agreement_is_the_loop():
    groups = random_groups(60)
    outcome = apply("grpo_care", Groups(groups.rewards, {**groups.inputs, "answer_confidence": NAN * groups.rewards}),
                    form="agreement", margin=0.05)  # fmt: skip
    for n in range(60):
        r, t, c, w = lists(groups, n, "rewards", "total_rewards", "clusters", "where")
        bonus = oracles.care_bonus([x / 2 for x in r], oracles.agreement(c, w), w, 0.5, 0.05, 0.95, 0.1)
        agree(outcome.scores["consistency_bonus"][n], [2 * b for b in bonus])
        agree(outcome.advantages[n], oracles.standardised([x + 2 * b for x, b in zip(t, bonus, strict=True)], w))


def test_each_form_of_care_reads_its_own_input():
    assert {"answer_confidence"} == set(read_inputs("grpo_care")) - set(read_inputs("grpo_care", {"form": "agreement"}))
    assert "clusters" in read_inputs("grpo_care", {"form": "agreement"})
    assert "mean_logprob" not in read_inputs("seed_grpo", {"estimator": "freq"})
