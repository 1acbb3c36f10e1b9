"""Methods that weigh by the success rate of a prompt: numbers by hand, and the loops of oracles."""

import math

import oracles
import pytest
import torch
from made_up import DTYPES, NAN, agree, lists, random_groups, row, weighs

from calibrant.advantages import in_mean_deviations
from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import apply, codapo, dgpo, ha_dw, mgpo

QUARTER = row(2, 0, 0, 0)
LADDER = torch.cat([row(0, 0, 0, 0), QUARTER, row(2, 2, 0, 0), row(2, 2, 2, 0), row(2, 2, 2, 2)])


def rate(groups, n):
    return oracles.success_rate(*lists(groups, n, "rewards", "correct", "where"))


def test_mgpo_by_hand():
    outcome = mgpo(LADDER, None)
    # KL(1/4, 1/2) = ln 2 - 0.562335 = 0.130812, exp(-4 * 0.130812) = 0.592593 = 16/27
    assert outcome.weights[:, 0].tolist() == pytest.approx([1 / 16, 16 / 27, 1, 16 / 27, 1 / 16])
    assert outcome.scores["success_rate"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert mgpo(QUARTER, None, row(1, 1, 0, 0)).weights.unique().tolist() == [1]  # verdicts come before rewards
    assert mgpo(QUARTER, None, row(1, NAN, NAN, NAN)).weights.unique().item() == pytest.approx(1 / 16)
    assert mgpo(row(1, 1, 0.5, 0.5), None).scores["success_rate"].item() == pytest.approx(0.375)  # partial credit


@pytest.mark.parametrize("dtype", DTYPES)
def test_mgpo_is_the_loop(dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("mgpo", groups, alpha=2.5)
    for n in range(25):
        r, w = lists(groups, n, "rewards", "where")
        weight = math.exp(-2.5 * oracles.entropy_distance(rate(groups, n))) if groups.where[n].sum() >= 2 else 1.0
        weighs(outcome, n, [weight] * 6, oracles.standardised(r, w), dtype)


def test_hadw_by_hand_and_its_memory():
    first = ha_dw(LADDER[1:4], None)  # rates 1/4 1/2 3/4, anchor 1/2
    up, down = 1.5 * math.exp(0.25), 1.5 * math.exp(-0.25)
    assert first.weights.tolist() == [
        pytest.approx([up, down, down, down]), pytest.approx([1.5] * 4), pytest.approx([down, down, down, up])
    ]  # fmt: skip
    assert first.state["history"].tolist() == pytest.approx([0.5])
    second = ha_dw(LADDER[4:], None, state=first.state)
    assert second.scores["difficulty_anchor"].item() == pytest.approx(0.5)  # of the batches before
    assert second.state["history"].tolist() == pytest.approx([0.5, 1.0])
    assert (second.weights == 1.5).all()  # no differences of reward
    third = ha_dw(QUARTER, None, state=second.state, window=2)
    assert third.scores["difficulty_anchor"].item() == pytest.approx(0.75)
    assert third.state["history"].tolist() == pytest.approx([1.0, 0.25])
    nothing = ha_dw(torch.full((2, 4), NAN), None, state=third.state)
    assert torch.equal(nothing.state["history"], third.state["history"]) and (nothing.weights == 1).all()


def test_hadw_is_the_released_code():
    groups = random_groups(40, binary=True)
    outcome = apply("ha_dw", groups, {"history": torch.tensor([0.3, 0.7, 0.6], dtype=torch.float64)})
    for n in range(40):
        r, w = lists(groups, n, "rewards", "where")
        if groups.where[n].sum() < 2:
            continue
        kept = [x for x, m in zip(r, w, strict=True) if m]
        p, mean = rate(groups, n), sum(kept) / len(kept)
        centred = [x if m and min(kept) < max(kept) else mean for x, m in zip(r, w, strict=True)]
        # the code compares a reward with the mean reward, and the mean reward with the mean of earlier batches
        expected = [oracles.hadw_scale(p + (x - mean), p, 1.6 / 3) for x in centred]
        agree(outcome.weights[n], expected)


def test_dgpo_by_hand():
    outcome = dgpo(LADDER, None)
    assert outcome.base == "mean_deviation" and outcome.weights[[0, 4], 0].tolist() == [1, 1]  # without spread
    e = [math.exp(-p / 2) for p in (0.25, 0.5, 0.75)]
    assert outcome.weights[1:4, 0].tolist() == pytest.approx([3 * x / sum(e) for x in e])
    # the sum of |A| is the number of rollouts for every prompt; by the standard deviation it is not
    sizes = in_mean_deviations(LADDER[1:4]).abs().sum(1)
    assert sizes.tolist() == pytest.approx([4.0] * 3, rel=1e-3)
    unsolved = dgpo(
        torch.cat([row(0.5, 0, 0, 0), QUARTER]), None, torch.stack([row(0, 0, 0, 0)[0], row(1, 0, 0, 0)[0]])
    )
    assert unsolved.weights[0, 0] < unsolved.weights[1, 0]  # a prompt without a right rollout counts as solved


@pytest.mark.parametrize("dtype", DTYPES)
def test_dgpo_is_the_loop(dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("dgpo", groups, temperature=0.7)
    rates = [rate(groups, n) for n in range(25)]
    spread = [oracles.informative(*lists(groups, n, "rewards", "where")) for n in range(25)]
    expected = oracles.dqw_weights(rates, spread, 0.7)
    for n in range(25):
        base = oracles.mean_deviation_advantages(*lists(groups, n, "rewards", "where"))
        weighs(outcome, n, [expected[n] if groups.where[n].sum() >= 2 else 1.0] * 6, base, dtype)


def test_codapo_by_hand():
    logprobs = row(-0.2, -0.4, -0.6, NAN)  # mean -0.4
    outcome = codapo(row(2, 2, 0, 0), logprobs, None)
    assert outcome.weights[0].tolist() == pytest.approx([0.7703200 + 0] * 4, abs=1e-7)
    assert codapo(row(2, 2, 2, 2), logprobs, None).weights.unique().item() == pytest.approx(0.1)
    assert codapo(row(2, 2, 0, 0), logprobs, None, offset=0.0).weights[0, 0] == pytest.approx(math.exp(-0.4))
    half = codapo(row(2, 2, 0, 0), logprobs, None, alpha=0.5).weights[0, 0]
    assert half == pytest.approx(0.5 + 0.5 * 0.7703200, abs=1e-7)
    assert (codapo(row(2, 2, 0, 0), torch.full((1, 4), NAN), None).weights == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_codapo_is_the_loop(dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("codapo", groups)
    for n in range(25):
        r, lp, w = lists(groups, n, "rewards", "mean_logprob", "where")
        enough = groups.where[n].sum() >= 2 and any(math.isfinite(x) and m for x, m in zip(lp, w, strict=True))
        weight = oracles.codapo_weight(rate(groups, n), lp, w) if enough else 1.0
        weighs(outcome, n, [weight] * 6, oracles.standardised(r, w), dtype)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mgpo", {"alpha": -1.0}, "alpha has to be a finite number of at least 0"),
        ("ha_dw", {"scale": 0.0}, "scale has to be a finite number above 0"),
        ("ha_dw", {"window": 0}, "window has to be"),
        ("dgpo", {"temperature": 0.0}, "temperature has to be"),
        ("codapo", {"alpha": 1.5}, r"alpha has to be a number in \[0, 1\]"),
        ("mgpo", {"reward_range": (1, 0)}, "reward_range has to be"),
    ],
)
def test_options_out_of_their_range_are_refused(name, options, message):
    with pytest.raises(CalibrantError, match=f"{name}: {message}"):
        apply(name, random_groups(), **options)


def test_without_groups_there_is_nothing_to_remember():
    empty = Groups(torch.zeros(0, 4), {"mean_logprob": torch.zeros(0, 4)})
    for name in ("mgpo", "ha_dw", "dgpo", "codapo"):
        assert apply(name, empty).weights.shape == (0, 4)
