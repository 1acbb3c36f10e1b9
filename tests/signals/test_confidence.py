import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.signals import (
    answer_confidence,
    cluster_share,
    mean_logprob,
    perplexity,
    scored,
    self_consistency,
)

NAN, INF = math.nan, math.inf
TOKEN_FUNCTIONS = [mean_logprob, perplexity, answer_confidence]


def random_tokens(shape=(5, 4, 6), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, shape[-1] + 1, shape[:-1], generator=generator)
    return logprobs.to(dtype), torch.arange(shape[-1]) < lengths[..., None]


def test_by_hand():
    # rows: (0.5, 0.125) with mean log = ln 0.25; (0.5) alone; nothing
    logprobs = torch.tensor([[[0.5, 0.125], [0.5, 0.9], [0.9, 0.9]]], dtype=torch.float64).log()
    mask = torch.tensor([[[1, 1], [1, 0], [0, 0]]])
    assert mean_logprob(logprobs, mask)[0].tolist() == pytest.approx([math.log(0.25), math.log(0.5), -1000.0])
    assert perplexity(logprobs, mask)[0, :2].tolist() == pytest.approx([4.0, 2.0])
    assert answer_confidence(logprobs, mask)[0].tolist() == pytest.approx([0.25, 0.5, 0.0])
    assert answer_confidence(logprobs, mask, upper_bound=0.3)[0].tolist() == pytest.approx([0.25, 0.3, 0.0])
    assert scored(logprobs, mask).tolist() == [[True, True, False]]


def test_an_empty_rollout_is_the_least_sure_in_every_type():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        logprobs, mask = torch.full((1, 2, 3), -11.0, dtype=dtype), torch.tensor([[[1, 1, 1], [0, 0, 0]]])
        assert mean_logprob(logprobs, mask)[0, 1] == -1000.0 < mean_logprob(logprobs, mask)[0, 0]
        assert perplexity(logprobs, mask)[0, 1] == torch.finfo(dtype).max
        assert answer_confidence(logprobs, mask)[0, 1] == 0.0 < answer_confidence(logprobs, mask)[0, 0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_token_that_is_no_number_spoils_its_rollout_only_if_it_counts(bad):
    logprobs = torch.full((1, 2, 3), -1.0)
    logprobs[0, :, 1] = bad
    mask = torch.tensor([[[True, True, True], [True, False, True]]])
    assert scored(logprobs, mask).tolist() == [[False, True]]
    assert mean_logprob(logprobs, mask).tolist() == [[-1000.0, -1.0]]
    assert answer_confidence(logprobs, mask)[0].tolist() == pytest.approx([0.0, math.exp(-1)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tokens_are_the_loop(dtype):
    logprobs, mask = random_tokens(dtype=dtype)
    logprobs[0, 0, 0] = NAN
    found = [f(logprobs, mask) for f in TOKEN_FUNCTIONS]
    assert all(x.dtype == dtype for x in found)
    tolerance = 1e-12 if dtype == torch.float64 else 1.01 * torch.finfo(dtype).eps
    for n in range(5):
        for i in range(4):
            expected = oracles.token_mean(logprobs[n, i].tolist(), mask[n, i].tolist())
            assert scored(logprobs, mask)[n, i].item() is (expected is not None)
            if expected is not None:
                values = [expected, math.exp(-expected), math.exp(expected)]
                assert [x[n, i].item() for x in found] == pytest.approx(values, rel=tolerance)
            else:
                assert [x[n, i].item() for x in found] == [-1000.0, torch.finfo(dtype).max, 0.0]


@pytest.mark.parametrize("function", TOKEN_FUNCTIONS)
def test_padding_does_not_matter(function):
    logprobs, mask = random_tokens()
    hidden = torch.where(mask, logprobs, torch.tensor([NAN, INF, -INF, 1e308, 0.0, 7.0], dtype=torch.float64))
    longer = torch.cat([hidden, torch.full((5, 4, 3), NAN)], -1), torch.cat([mask, torch.zeros(5, 4, 3).bool()], -1)
    torch.testing.assert_close(function(*longer), function(logprobs, mask))
    torch.testing.assert_close(function(hidden, mask.int()), function(logprobs, mask))


def test_clusters_by_hand():
    clusters = torch.tensor([[0, 0, 1, 2], [5, 5, 5, 5], [3, 2, 1, 0]])
    assert self_consistency(clusters).tolist() == [0.5, 1.0, 0.25]
    assert cluster_share(clusters)[0].tolist() == [0.5, 0.5, 0.25, 0.25]
    # without one of the two zeros: three clusters of one
    where = torch.tensor([[False, True, True, True]] * 3)
    assert self_consistency(clusters, where).tolist() == pytest.approx([1 / 3, 1.0, 1 / 3])
    assert cluster_share(clusters, where)[0].tolist() == pytest.approx([0.0, 1 / 3, 1 / 3, 1 / 3])
    assert self_consistency(clusters, torch.zeros(3, 4).bool()).tolist() == [0.0] * 3
    assert self_consistency(torch.tensor([[4]])).tolist() == [1.0]


def test_clusters_are_the_loop_and_masked_is_dropped():
    generator = torch.Generator().manual_seed(1)
    clusters = torch.randint(-2, 3, (30, 7), generator=generator)
    where = torch.rand(30, 7, generator=generator) > 0.4
    found, shares = self_consistency(clusters, where), cluster_share(clusters, where)
    for n in range(30):
        expected = oracles.largest_share(clusters[n].tolist(), where[n].tolist())
        assert found[n].item() == pytest.approx(expected) and shares[n].amax().item() == pytest.approx(expected)
        assert (shares[n][~where[n]] == 0).all()
        if where[n].any():
            assert found[n] == self_consistency(clusters[n : n + 1, where[n]])[0]
            assert torch.equal(shares[n, where[n]], cluster_share(clusters[n : n + 1, where[n]])[0])


def test_order_of_rollouts_does_not_matter():
    generator = torch.Generator().manual_seed(2)
    clusters = torch.randint(0, 3, (10, 6), generator=generator)
    order = torch.randperm(6, generator=generator)
    assert torch.equal(self_consistency(clusters[:, order]), self_consistency(clusters))
    assert torch.equal(cluster_share(clusters[:, order]), cluster_share(clusters)[:, order])


def test_leading_axes_no_prompts_no_tokens_and_detachment():
    logprobs, mask = random_tokens((2, 3, 4, 5))
    for function in TOKEN_FUNCTIONS:
        assert torch.equal(function(logprobs, mask).flatten(0, 1), function(logprobs.flatten(0, 1), mask.flatten(0, 1)))
        assert function(torch.zeros(0, 4, 5), torch.zeros(0, 4, 5).bool()).shape == (0, 4)
        assert function(torch.zeros(2, 4, 0), torch.zeros(2, 4, 0).bool()).shape == (2, 4)
        assert not function(logprobs.clone().requires_grad_(), mask).requires_grad
    assert self_consistency(torch.zeros(0, 4).long()).shape == (0,)
    assert cluster_share(torch.zeros(2, 3, 4).long()).shape == (2, 3, 4)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_always_finite_and_in_range(data):
    n, g, t = (data.draw(st.integers(low, 4)) for low in (0, 1, 0))
    values = st.lists(st.floats(width=32), min_size=n * g * t, max_size=n * g * t)
    flags = st.lists(st.booleans(), min_size=n * g * t, max_size=n * g * t)
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.float16]))
    logprobs = torch.tensor(data.draw(values), dtype=dtype).reshape(n, g, t)
    mask = torch.tensor(data.draw(flags), dtype=torch.bool).reshape(n, g, t)
    for function in TOKEN_FUNCTIONS:
        assert torch.isfinite(function(logprobs, mask)).all()
    assert (mean_logprob(logprobs, mask) >= -1000.0).all() and (perplexity(logprobs, mask) >= 0).all()
    confidence = answer_confidence(logprobs, mask, upper_bound=0.5)
    assert ((confidence >= 0) & (confidence <= 0.5)).all()
    assert (confidence[~scored(logprobs, mask)] == 0).all()


def test_shapes_types_and_bounds_are_checked():
    for function in (scored, *TOKEN_FUNCTIONS):
        with pytest.raises(CalibrantError, match=rf"{function.__name__}.*T is 5 in .* and 4 in"):
            function(torch.zeros(2, 3, 5), torch.zeros(2, 3, 4).bool())
        with pytest.raises(CalibrantError, match=rf"{function.__name__}: a mask.*float32"):
            function(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5))
    for function in (self_consistency, cluster_share):
        with pytest.raises(CalibrantError, match=rf"{function.__name__}.*G is 4 in clusters and 5 in where"):
            function(torch.zeros(2, 4).long(), torch.zeros(2, 5).bool())
        with pytest.raises(CalibrantError, match=rf"{function.__name__}: clusters have to be integers"):
            function(torch.zeros(2, 4))
    for bad in (0.0, 1.5, NAN, True, "0.5"):
        with pytest.raises(CalibrantError, match="upper_bound"):
            answer_confidence(torch.zeros(1, 1, 1), torch.ones(1, 1, 1).bool(), upper_bound=bad)
