import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.advantages import centred, leave_one_out, standardised
from calibrant.errors import CalibrantError

NAN, INF = math.nan, math.inf
ALL = [standardised, centred, leave_one_out]
FLOATS = st.one_of(st.floats(-10, 10), st.sampled_from([NAN, INF, -INF, 0.3, 0.0, 1e300, -1e300, 1e-300]))


def test_standardised_by_hand():
    # mean 1/4, unbiased variance (9/16 + 3/16) / 3 = 1/4, std 1/2: 0.75 / 0.5001, -0.25 / 0.5001
    found = standardised(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64))[0].tolist()
    assert found == pytest.approx([0.75 / 0.5001] + [-0.25 / 0.5001] * 3, rel=1e-14)


def test_population_deviation_by_hand():
    # variance 3/16: 0.75 / 0.4330127 = sqrt(3)
    found = standardised(torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64), ddof=0, eps=0.0)[0].tolist()
    assert found == pytest.approx([math.sqrt(3.0)] + [-1 / math.sqrt(3.0)] * 3, rel=1e-14)


def test_centred_and_leave_one_out_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert centred(rewards)[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert leave_one_out(rewards)[0].tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3], rel=1e-15)


def test_seven_against_one_stays_small():
    # mean 0.56875, std sqrt((7 0.03125^2 + 0.21875^2) / 7) = 0.0883883: -0.21875 / 0.0884883, 0.03125 / 0.0884883
    found = standardised(torch.tensor([[0.35] + [0.6] * 7]))[0].tolist()
    assert found == pytest.approx([-2.472078] + [0.353154] * 7, abs=1e-5)


def test_rewards_too_large_to_square_are_still_ranked():
    huge = torch.tensor([[1e300, 0.0, 0.0, 0.0], [-1e300, 1e300, 0.0, 0.0]], dtype=torch.float64)
    # (3, -1, -1, -1) / 2 and (-1, 1, 0, 0) / sqrt(2/3)
    expected = [[1.5, -0.5, -0.5, -0.5], [-math.sqrt(1.5), math.sqrt(1.5), 0.0, 0.0]]
    torch.testing.assert_close(standardised(huge), torch.tensor(expected, dtype=torch.float64))


def reference_of_trl(rewards):
    """GRPOTrainer: mean and unbiased std of the group in float32, eps 1e-4."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def test_defaults_are_those_of_trl():
    rewards = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(standardised(rewards), reference_of_trl(rewards), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("advantage", ALL)
def test_equal_rewards_give_exactly_nothing(advantage):
    rewards = torch.full((1, 8), 0.3)
    assert reference_of_trl(rewards).abs().max() > 1e-4  # what the residue of rounding makes of them
    assert torch.equal(advantage(rewards), torch.zeros(1, 8))
    assert torch.equal(advantage(rewards.double() + torch.rand(1, 8).double() * 1e-7), torch.zeros(1, 8).double())


@pytest.mark.parametrize("advantage", ALL)
def test_fewer_than_two_scorable_rollouts_give_exactly_nothing(advantage):
    rewards = torch.tensor([[NAN, 5.0, NAN], [NAN, NAN, NAN], [INF, -INF, 3.0]])
    assert torch.equal(advantage(rewards), torch.zeros(3, 3))
    assert torch.equal(advantage(torch.tensor([[7.0]])), torch.zeros(1, 1))


@pytest.mark.parametrize("advantage", ALL)
def test_unscorable_rollouts_get_nothing_and_count_for_nothing(advantage):
    rewards = torch.tensor([[1.0, NAN, 0.0, 0.5, INF]])
    found = advantage(rewards)
    assert found[0, [1, 4]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(found[:, [0, 2, 3]], advantage(rewards[:, [0, 2, 3]]), rtol=0, atol=0)


@pytest.mark.parametrize("advantage", ALL)
def test_excluded_is_the_same_as_unscorable(advantage):
    generator = torch.Generator().manual_seed(3)
    rewards, where = torch.rand(30, 6, generator=generator), torch.rand(30, 6, generator=generator) > 0.4
    assert torch.equal(advantage(rewards, where), advantage(torch.where(where, rewards, NAN)))


@pytest.mark.parametrize("name", ["standardised", "centred", "leave_one_out"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(25, 2), (25, 5), (10, 16)])
def test_batched_is_the_loop(name, dtype, shape):
    generator = torch.Generator().manual_seed(sum(shape))
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    rewards[torch.rand(shape, generator=generator) < 0.2] = NAN
    where = torch.rand(shape, generator=generator) > 0.2
    expected = [getattr(oracles, name)(r, w) for r, w in zip(rewards.tolist(), where.tolist(), strict=True)]
    found = globals()[name](rewards, where)
    assert found.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1.01 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        found.double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("ddof, eps", [(0, 1e-4), (1, 1e-6), (0, 0.0)])
def test_ddof_and_eps_agree_with_the_loop(ddof, eps):
    rewards = torch.randn(20, 6, dtype=torch.float64)
    expected = [oracles.standardised(r, [True] * 6, ddof, eps) for r in rewards.tolist()]
    torch.testing.assert_close(standardised(rewards, ddof=ddof, eps=eps), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("advantage", ALL)
def test_order_of_rollouts_and_of_groups_only_reorders(advantage):
    rewards = torch.randn(9, 7, dtype=torch.float64)
    rewards[2, 3] = NAN
    rows, columns = torch.randperm(9), torch.randperm(7)
    torch.testing.assert_close(advantage(rewards[rows][:, columns]), advantage(rewards)[rows][:, columns])


@pytest.mark.parametrize("advantage", ALL)
def test_a_shift_of_the_rewards_changes_nothing_and_the_sum_is_zero(advantage):
    rewards = torch.randn(9, 7, dtype=torch.float64)
    torch.testing.assert_close(advantage(rewards + 100.0), advantage(rewards), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(advantage(rewards).sum(1), torch.zeros(9).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("advantage", ALL)
def test_leading_axes_are_batch_axes(advantage):
    rewards = torch.rand(2, 3, 4)
    assert torch.equal(advantage(rewards).reshape(6, 4), advantage(rewards.reshape(6, 4)))
    assert advantage(torch.zeros(0, 4)).shape == (0, 4)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(FLOATS, min_size=5, max_size=5), min_size=1, max_size=3), st.sampled_from(ALL))
def test_finite_and_of_the_right_sign_whatever_comes(rows, advantage):
    for dtype in (torch.float64, torch.float32, torch.float16):
        rewards = torch.tensor(rows, dtype=torch.float64).to(dtype)
        found = advantage(rewards)
        assert torch.isfinite(found).all()
        assert (found[~torch.isfinite(rewards)] == 0).all()
        for r, a in zip(rewards, found, strict=True):
            if (a != 0).any():
                r = torch.where(torch.isfinite(r), r.double().clamp(-1e100, 1e100), NAN)
                assert a[r == r.nan_to_num(-INF).max()].min() >= 0
                assert a[r == r.nan_to_num(INF).min()].max() <= 0


@pytest.mark.parametrize("advantage", ALL)
def test_eps_of_zero_is_safe_for_a_spread_just_above_tol(advantage):
    rewards = torch.tensor([[0.0, 1e-200, 0.0]], dtype=torch.float64)
    arguments = {"tol": 0.0, **({"eps": 0.0} if advantage is standardised else {})}
    assert torch.isfinite(advantage(rewards, **arguments)).all()


@pytest.mark.parametrize("advantage", ALL)
def test_no_gradient_and_no_change_of_the_input(advantage):
    rewards = torch.tensor([[1.0, NAN, 0.0]], requires_grad=True)
    assert not advantage(rewards).requires_grad
    assert rewards.detach().nan_to_num(-1).tolist() == [[1.0, -1.0, 0.0]]


@pytest.mark.parametrize("arguments", [{"eps": -1.0}, {"eps": NAN}, {"tol": -1.0}, {"tol": NAN}, {"ddof": 3}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(CalibrantError, match=next(iter(arguments))):
        standardised(torch.zeros(1, 4), **arguments)


@pytest.mark.parametrize("advantage", ALL)
def test_flat_rewards_are_refused(advantage):
    with pytest.raises(CalibrantError, match=rf"{advantage.__name__}: expected rewards \[..., N, G\], got .*\[8\]"):
        advantage(torch.zeros(8))
