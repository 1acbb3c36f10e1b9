import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.weights import boost, damp, group_alpha, mean_one

NAN, INF = math.nan, math.inf


def test_group_alpha_by_hand():
    # 0.6 / ln 16 = 0.6 / 2.7725887, 0.6 / ln 4 = 0.6 / 1.3862944, 0.6 / ln 2 = 0.6 / 0.6931472
    found = group_alpha(0.6, torch.tensor([16, 4, 2])).tolist()
    assert found == pytest.approx([0.2164043, 0.4328085, 0.8656170], abs=1e-7)


def test_group_alpha_is_zero_where_there_is_no_group():
    assert group_alpha(0.6, torch.tensor([1, 0])).tolist() == [0.0, 0.0]
    assert group_alpha(0, torch.tensor([8])).tolist() == [0.0]


@pytest.mark.parametrize("alpha", [-0.1, NAN, INF, "0.6", None, True])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(CalibrantError, match="alpha"):
        group_alpha(alpha, torch.tensor([8]))


def test_damp_by_hand():
    # 1 - 0.4 * 0.25, 1 - 0.4, clipped: 1 - 0.4 * 4 < 0
    found = damp(torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64), 0.4).tolist()
    assert found == pytest.approx([1.0, 0.9, 0.6, 0.0])


def test_boost_by_hand():
    found = boost(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.4])).tolist()
    assert found == pytest.approx([1.0, 1.1, 1.4])


def test_the_weights_of_the_paper_are_mild():
    # G = 16: w_CD >= 1 - 0.2164043 (15/16)^2 = 0.8098, w_BoT >= 1 - 0.2164043 / 4 = 0.9459, w_RD <= 1.2164
    strength = group_alpha(0.6, torch.tensor([16]))
    assert damp(torch.tensor([15 / 16]), strength).item() == pytest.approx(0.80980, abs=1e-5)
    assert damp(torch.tensor([0.5]), strength).item() == pytest.approx(0.94590, abs=1e-5)
    assert boost(torch.tensor([1.0]), strength).item() == pytest.approx(1.21640, abs=1e-5)


@pytest.mark.parametrize("weight", [damp, boost])
def test_without_strength_a_weight_is_exactly_one(weight):
    assert torch.equal(weight(torch.rand(100), torch.zeros(100)), torch.ones(100))


@pytest.mark.parametrize("weight", [damp, boost])
def test_a_score_that_is_no_number_is_no_evidence(weight):
    assert weight(torch.tensor([NAN, INF, -INF]), 0.5).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("weight", [damp, boost])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_keep_the_type_and_are_detached(weight, dtype):
    score = torch.rand(3, dtype=torch.float32).to(dtype).requires_grad_()
    found = weight(score, torch.tensor([0.5, 0.5, 0.5], requires_grad=True))
    assert found.dtype == dtype and not found.requires_grad


@settings(deadline=None, max_examples=100)
@given(st.floats(allow_nan=True), st.floats(0, 1e6))
def test_ranges_hold_for_every_score(score, strength):
    for dtype in (torch.float64, torch.float32, torch.float16):
        u = torch.tensor([score], dtype=torch.float64).to(dtype)
        assert 0.0 <= damp(u, strength).item() <= 1.0
        assert torch.isfinite(boost(u, strength)).all()
        assert boost(u.abs(), strength).item() >= 1.0


def test_mean_one_by_hand():
    # mean 2: divided by 2
    assert mean_one(torch.tensor([0.5, 1.5, 4.0])).tolist() == [0.25, 0.75, 2.0]
    # the mean of the first two is 1: all are divided by it
    where = torch.tensor([True, True, False])
    assert mean_one(torch.tensor([0.5, 1.5, 4.0]), where).tolist() == [0.5, 1.5, 4.0]


def test_mean_one_has_mean_one_and_keeps_ratios():
    weights, where = torch.rand(20, 8, dtype=torch.float64) + 0.1, torch.rand(20, 8) > 0.3
    found = mean_one(weights, where)
    assert found[where].mean().item() == pytest.approx(1.0, abs=1e-14)
    torch.testing.assert_close(found / found[0, 0], weights / weights[0, 0])


@pytest.mark.parametrize(
    "weights", [torch.zeros(3), torch.tensor([NAN, 1.0, 1.0]), torch.full((2,), -1.0), torch.zeros(0)]
)
def test_mean_one_leaves_what_it_cannot_scale(weights):
    assert torch.equal(mean_one(weights), weights.nan_to_num(0.0))
    nothing = torch.zeros(weights.shape, dtype=torch.bool)
    assert torch.equal(mean_one(weights, nothing), weights.nan_to_num(0.0))


def test_shapes_have_to_agree():
    with pytest.raises(CalibrantError, match=r"damp.*score.*strength.*\[3\].*\[2\]"):
        damp(torch.zeros(3), torch.zeros(2))
    with pytest.raises(CalibrantError, match=r"mean_one.*weights.*where.*\[3\].*\[2\]"):
        mean_one(torch.zeros(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(CalibrantError, match="has to be a tensor"):
        boost(0.5, 0.5)
