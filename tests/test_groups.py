import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import counted, mean, std

from calibrant.errors import CalibrantError
from calibrant.groups import (
    Groups,
    assert_integrity,
    count_out_of_range,
    group_count,
    group_mean,
    group_rows,
    group_spread,
    group_std,
    has_spread,
    valid,
)

NAN, INF = math.nan, math.inf
FLOATS = st.one_of(st.floats(-10, 10), st.sampled_from([NAN, INF, -INF, 0.3, 0.0, 1e300, -1e300, 1e-300]))


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def test_only_finite_rewards_inside_where_count():
    rewards = tensor([[1.0, NAN, INF, -INF, 0.0]])
    where = torch.tensor([[True, True, True, True, False]])
    assert valid(rewards).tolist() == [[True, False, False, False, True]]
    assert valid(rewards, where).tolist() == [[True, False, False, False, False]]


def test_statistics_by_hand():
    rewards = tensor([[1.0, 2.0, 6.0, NAN], [NAN, NAN, 5.0, NAN], [NAN, NAN, NAN, NAN]])
    assert group_count(rewards).tolist() == [3, 1, 0]
    assert group_mean(rewards).tolist() == [3.0, 5.0, 0.0]  # (1 + 2 + 6) / 3
    assert group_std(rewards).tolist() == [math.sqrt(7.0), 0.0, 0.0]  # (4 + 1 + 9) / 2
    assert group_std(rewards, ddof=0).tolist() == pytest.approx([math.sqrt(14 / 3), 0.0, 0.0])
    assert group_spread(rewards).tolist() == [5.0, 0.0, 0.0]


def test_where_is_the_same_as_nan():
    rewards = torch.rand(7, 5)
    where = torch.rand(7, 5) > 0.3
    with_nan = torch.where(where, rewards, NAN)
    for statistic in (group_count, group_mean, group_std, group_spread, has_spread):
        assert torch.equal(statistic(rewards, where), statistic(with_nan)), statistic.__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_statistics_keep_the_type_and_agree_with_the_loop(dtype):
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(40, 7, generator=generator, dtype=torch.float64).to(dtype)
    where = torch.rand(40, 7, generator=generator) > 0.4
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
    for n in range(40):
        kept = counted(rewards[n].tolist(), where[n].tolist())
        if len(kept) >= 2:
            expected = [mean(kept), std(kept, 1), max(kept) - min(kept)]
            found = [f(rewards, where)[n].item() for f in (group_mean, group_std, group_spread)]
            assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert {f(rewards, where).dtype for f in (group_mean, group_std, group_spread)} == {dtype}


def test_integers_give_the_default_type():
    assert group_mean(torch.tensor([[1, 0, 0, 1]])).dtype == torch.get_default_dtype()
    assert group_mean(torch.tensor([[True, False]])).tolist() == [0.5]


@pytest.mark.parametrize("value", [0.3, 0.1, 0.7, 1 / 3, 1e-7, 123.456])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 16])
def test_the_mean_of_equal_rewards_is_their_value_to_the_bit(value, size):
    rewards = torch.full((1, size), value, dtype=torch.float64)
    assert group_mean(rewards).item() == value
    assert group_std(rewards).item() == 0.0


def test_spread_is_decided_by_range_not_by_deviation():
    equal = torch.full((1, 8), 0.3)
    assert equal.std() > 0  # what rounding leaves
    assert has_spread(equal).tolist() == [False]
    tiny = tensor([[0.0, 2e-6], [0.0, 0.5e-6]])
    assert has_spread(tiny).tolist() == [True, False]
    assert has_spread(tiny, tol=1e-7).tolist() == [True, True]
    assert has_spread(tensor([[0.0, 1.0]]), tol=1.0).tolist() == [False]  # more than tol, not at least


def test_spread_needs_two_scorable_rollouts():
    assert has_spread(tensor([[5.0, NAN], [NAN, NAN], [5.0, 6.0]])).tolist() == [False, False, True]
    assert has_spread(torch.zeros(1, 1)).tolist() == [False]


def test_no_prompts_and_leading_axes():
    empty = torch.zeros(0, 4)
    assert [list(f(empty).shape) for f in (group_count, group_mean, group_std, group_spread, has_spread)] == [[0]] * 5
    rewards = torch.rand(2, 3, 5)
    for statistic in (group_count, group_mean, group_std, group_spread, has_spread):
        assert torch.equal(statistic(rewards), torch.stack([statistic(rewards[0]), statistic(rewards[1])]))


def test_statistics_do_not_depend_on_the_order_of_rollouts():
    rewards, order = torch.rand(6, 9, dtype=torch.float64), torch.randperm(9)
    for statistic in (group_mean, group_std, group_spread):
        torch.testing.assert_close(statistic(rewards[:, order]), statistic(rewards), rtol=1e-13, atol=0)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(FLOATS, min_size=4, max_size=4), min_size=1, max_size=4), st.integers(0, 1))
def test_statistics_are_finite_whatever_comes(rows, ddof):
    for dtype in (torch.float64, torch.float32, torch.float16):
        rewards = tensor(rows, dtype)
        for values in (group_mean(rewards), group_std(rewards, ddof=ddof), group_spread(rewards)):
            assert torch.isfinite(values).all()
        assert (group_std(rewards) >= 0).all() and (group_spread(rewards) >= 0).all()


def test_statistics_do_not_carry_gradients():
    rewards = torch.rand(2, 4, requires_grad=True)
    assert not group_mean(rewards).requires_grad and not group_std(rewards).requires_grad


def test_a_wrong_shape_shows_shapes_and_letters():
    with pytest.raises(CalibrantError, match=r"rewards \[..., N, G\]") as caught:
        group_mean(torch.zeros(2, 4), torch.ones(2, 3, dtype=torch.bool))
    assert "[2, 4]" in str(caught.value) and "[2, 3]" in str(caught.value) and "G is 4" in str(caught.value)


@pytest.mark.parametrize(
    "rewards, where, message",
    [
        (torch.zeros(8), None, "axes"),
        (torch.zeros(2, 0), None, "G is 0"),
        ([[1.0, 2.0]], None, "has to be a tensor"),
        (torch.zeros(2, 4), torch.ones(2, 4), "boolean"),
        (torch.zeros(2, 4), torch.ones(3, 4, dtype=torch.bool), "N is 2"),
    ],
)
def test_other_wrong_arguments(rewards, where, message):
    with pytest.raises(CalibrantError, match=message):
        group_mean(rewards, where)


@pytest.mark.parametrize("ddof", [2, -1, 0.5, None])
def test_ddof_is_0_or_1(ddof):
    with pytest.raises(CalibrantError, match="ddof"):
        group_std(torch.zeros(2, 4), ddof=ddof)


def test_rows_split_into_groups_in_order():
    rows = torch.arange(12).reshape(6, 2)
    assert group_rows(rows, 3).tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert group_rows(torch.zeros(0, 5), 4).shape == (0, 4, 5)


@pytest.mark.parametrize("size", [4, 0, -2, 2.0, True])
def test_rows_that_do_not_split_are_refused(size):
    with pytest.raises(CalibrantError, match=r"multiple of num_generations|positive integer"):
        group_rows(torch.zeros(6), size)


def test_integrity_accepts_whole_groups_and_repeated_prompts():
    assert_integrity(["a", "a", "b", "b", "a", "a"], 2)
    assert_integrity([], 4)
    assert_integrity(["a", "b", "c"], 1)


def test_integrity_shows_the_layout():
    keys = ["a"] * 4 + ["b", "b", "c", "b"]
    with pytest.raises(CalibrantError) as caught:
        assert_integrity(keys, 4)
    message = str(caught.value)
    assert "row 6 of block 1" in message and "rows 4 to 7" in message
    assert "A A B A with A = 'b', B = 'c'" in message


def test_integrity_of_interleaved_rows_and_of_a_cut_group():
    with pytest.raises(CalibrantError, match="row 1 of block 0"):
        assert_integrity(["a", "b"] * 4, 4)
    with pytest.raises(CalibrantError, match="7 rows do not split into groups of 4"):
        assert_integrity(["a"] * 7, 4)


def test_integrity_shortens_long_prompts():
    with pytest.raises(CalibrantError) as caught:
        assert_integrity(["x" * 5000, "y" * 5000], 2)
    assert len(str(caught.value)) < 600


def test_groups_combine_rewards_and_mask():
    groups = Groups(tensor([[1.0, NAN, 2.0]]), {"where": torch.tensor([[False, True, True]])})
    assert groups.where.tolist() == [[False, False, True]]


def test_groups_from_flat_rows():
    groups = Groups.from_flat(torch.arange(6.0), 3, embeddings=torch.arange(12.0).reshape(6, 2))
    assert groups.rewards.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert groups.inputs["embeddings"].shape == (2, 3, 2)
    assert groups.inputs["embeddings"][1, 0].tolist() == [6.0, 7.0]


def test_groups_refuse_inputs_of_other_shapes():
    with pytest.raises(CalibrantError, match=r"'embeddings'.*\[2, 4\].*\[2, 3, 8\]"):
        Groups(torch.zeros(2, 4), {"embeddings": torch.zeros(2, 3, 8)})
    with pytest.raises(CalibrantError, match=r"'clusters'.*a list"):
        Groups(torch.zeros(2, 4), {"clusters": [[0, 1, 2, 3]]})
    with pytest.raises(CalibrantError, match=r"rewards \[N, G\]"):
        Groups(torch.zeros(8))
    with pytest.raises(CalibrantError, match=r"'clusters'.*\[8\].*\[6\]"):
        Groups.from_flat(torch.zeros(8), 4, clusters=torch.zeros(6))


def test_rewards_out_of_range_are_counted():
    rewards = torch.tensor([[0.0, 2.0, 2.1, -0.1], [NAN, INF, 2.0 + 1e-6, 1.0]])
    assert count_out_of_range(rewards, (0.0, 2.0)) == 2
    assert count_out_of_range(rewards, [0.0, 1.0]) == 4
    assert count_out_of_range(torch.zeros(0, 4), (0, 1)) == 0


@pytest.mark.parametrize("bad", [(2.0, 0.0), (1.0, 1.0), (0.0, NAN), (0.0, INF), (0.0,), "01", None, (0, "1"), 2.0])
def test_an_empty_range_is_refused(bad):
    with pytest.raises(CalibrantError, match="reward_range"):
        count_out_of_range(torch.zeros(1, 2), bad)
