"""Statistics of inner products, and errors."""

import math

import pytest
import torch
from builders_head import make_head, oracle_gradients, oracle_variance
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.signals.gradient import (
    gradient_snr_weight,
    head_gradient_dispersion,
    head_gradient_variance,
    head_gram,
    head_gram_from_weight,
)

NAN, INF = math.nan, math.inf


def test_variance_and_dispersion_are_their_definitions():
    hidden, weight, tokens, mask = make_head()
    mask[..., 0] = True
    gradients = oracle_gradients(hidden, weight, tokens, mask)
    gram = head_gram_from_weight(hidden, weight, tokens, mask)
    advantages = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    where = torch.tensor([[True, True, False, True], [True, True, True, True]])
    advantages[1, 0] = NAN
    variance = head_gradient_variance(gram, advantages, where)
    dispersion, weights = head_gradient_dispersion(gram, where), gradient_snr_weight(gram, advantages, where)
    for n, rows in enumerate(([0, 1, 3], [1, 2, 3])):
        assert variance[n].item() == pytest.approx(oracle_variance(gradients[n, rows], advantages[n, rows]).item())
        updates = advantages[n, rows, None] * gradients[n, rows]
        noise = (updates - updates.mean(0)).square().sum() / 2
        expected = max(0.0, 1 - (noise / 3 / updates.mean(0).square().sum()).item())
        assert weights[n].item() == pytest.approx(expected, abs=1e-12)
    counted = gradients[0, [0, 1, 3]]
    share = 1 - counted.mean(0).square().sum() / counted.square().sum(-1).mean()
    assert dispersion[0].item() == pytest.approx(share.item())


def test_by_hand():
    # g = (1, 0), (0, 1); A = (1, -1): the mean is (1, -1)/2, each deviation (1, 1)/2 or its negative
    gram, advantages = torch.eye(2)[None], torch.tensor([[1.0, -1.0]])
    assert head_gradient_variance(gram, advantages).tolist() == [0.5]
    assert head_gradient_dispersion(gram).tolist() == [0.5]
    assert gradient_snr_weight(gram, advantages).tolist() == [0.0]  # S^2 = 1, S^2/2 = 1/2 = |mean|^2
    opposite = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    assert head_gradient_dispersion(opposite).tolist() == [1.0]
    assert gradient_snr_weight(opposite, torch.ones(1, 2)).tolist() == [0.0]
    assert gradient_snr_weight(opposite, advantages).tolist() == [1.0]
    rows = torch.tensor([[[1.0], [-0.5], [-0.5]]])  # they cancel, all is noise
    assert gradient_snr_weight(rows @ rows.mT, torch.ones(1, 3)).tolist() == [0.0]
    # g = 3 and 1 with A = 1: mean 2, S^2 = 2, w = 1 - (2/2)/4
    assert gradient_snr_weight(torch.tensor([[[9.0, 3.0], [3.0, 1.0]]]), torch.ones(1, 2)).tolist() == [0.75]


def test_the_signal_is_the_mean_product_of_different_rollouts():
    rows = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2.0
    gram, ones = rows @ rows.mT, torch.ones(3, 5, dtype=torch.float64)
    products = gram.sum((-2, -1)) - gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    expected = products / 20 / rows.mean(1).square().sum(-1)
    assert ((expected > 0) & (expected < 1)).all()
    torch.testing.assert_close(gradient_snr_weight(gram, ones), expected)
    torch.testing.assert_close(gradient_snr_weight(gram, ones, strength=0.4), 1 - 0.4 * (1 - expected))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_what_a_shared_baseline_does_to_the_signal(n):
    """Over all groups of n of three equally likely rollouts, with E g = 0: too large by 1 + 1 / (n - 1)^2, exactly."""
    rewards, scores = torch.tensor([1.0, 0.0, 0.5]).double(), torch.tensor([2.0, -1.0, -1.0]).double()
    groups = torch.cartesian_prod(*[torch.arange(3)] * n)
    updates = (rewards[groups] - rewards[groups].mean(1, keepdim=True)) * scores[groups]
    products = (updates.sum(1).square() - updates.square().sum(1)) / (n * (n - 1))
    assert products.mean().item() == pytest.approx(updates.mean().item() ** 2 * (1 + 1 / (n - 1) ** 2))


def test_without_strength_every_weight_is_one():
    noise = torch.stack([torch.eye(2), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.full((2, 2), NAN)])
    assert gradient_snr_weight(noise, torch.ones(3, 2), strength=0.0).tolist() == [1.0] * 3
    assert gradient_snr_weight(noise, torch.ones(3, 2), strength=1e300).tolist() == [0.0, 0.0, 1.0]
    for strength in (-0.1, NAN, INF):
        with pytest.raises(CalibrantError, match="strength has to be a finite number of at least 0"):
            gradient_snr_weight(noise, torch.ones(3, 2), strength=strength)


def test_groups_that_say_nothing():
    gram = torch.eye(3).expand(4, 3, 3).clone()
    gram[1] = 1.0  # three equal gradients
    gram[2] = 0.0
    gram[3, 1:, 1:] = NAN
    advantages = torch.ones(4, 3)
    assert head_gradient_variance(gram, advantages).tolist() == pytest.approx([2 / 3, 0.0, 0.0, 0.0])
    assert head_gradient_dispersion(gram).tolist() == pytest.approx([2 / 3, 0.0, 0.0, 0.0])
    assert gradient_snr_weight(gram, advantages).tolist() == [0.0, 1.0, 1.0, 1.0]
    for nothing in (torch.zeros(4, 3), torch.full((4, 3), NAN)):
        assert gradient_snr_weight(gram, nothing).tolist() == [1.0] * 4
        assert head_gradient_variance(gram, nothing).tolist() == [0.0] * 4
    nobody = torch.zeros(4, 3, dtype=torch.bool)
    assert gradient_snr_weight(gram, advantages, nobody).tolist() == [1.0] * 4
    assert head_gradient_dispersion(gram, nobody).tolist() == [0.0] * 4
    one = torch.tensor([[True, False, False]]).expand(4, 3)
    assert gradient_snr_weight(gram, 3.7 * advantages, one).tolist() == [1.0] * 4
    assert head_gradient_variance(gram, 3.7 * advantages, one).tolist() == [0.0] * 4


SPECIAL = st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e38, -1e38, 1e300, NAN, INF, -INF])


@settings(max_examples=150, deadline=None)
@given(st.lists(SPECIAL, min_size=9, max_size=9), st.lists(SPECIAL, min_size=3, max_size=3))
def test_finite_and_in_range_for_any_input(entries, values):
    gram = torch.tensor(entries, dtype=torch.float64).view(1, 3, 3)
    advantages = torch.tensor([values], dtype=torch.float64)
    variance = head_gradient_variance(gram, advantages)
    assert torch.isfinite(variance).all() and (variance >= 0).all()
    for unit in (head_gradient_dispersion(gram), gradient_snr_weight(gram, advantages)):
        assert ((unit >= 0) & (unit <= 1)).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_scale_and_order_do_not_matter(rollouts, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, rollouts, 4, generator=generator, dtype=torch.float64)
    advantages = torch.randn(1, rollouts, generator=generator, dtype=torch.float64)
    order = torch.randperm(rollouts, generator=generator)
    gram, other = rows @ rows.mT, scale**2 * rows[:, order] @ rows[:, order].mT
    approx = dict(rel=1e-8, abs=1e-9)
    assert head_gradient_dispersion(gram).item() == pytest.approx(head_gradient_dispersion(other).item(), **approx)
    weight = gradient_snr_weight(gram, advantages).item()
    assert gradient_snr_weight(other, 7 * advantages[:, order]).item() == pytest.approx(weight, **approx)
    expected = oracle_variance(rows[0], advantages[0]).item()
    assert head_gradient_variance(other, advantages[:, order]).item() == pytest.approx(scale**2 * expected, rel=1e-8)


BAD = [
    (dict(temperature=0), "temperature has to be a finite number above 0, got 0"),
    (dict(temperature=INF), "temperature has to be a finite number above 0, got inf"),
    (dict(top=0), "top has to be a positive integer or None, got 0"),
    (dict(top=1.5), "top has to be a positive integer or None, got 1.5"),
]


@pytest.mark.parametrize("options,message", BAD)
def test_bad_options(options, message):
    hidden, weight, tokens, mask = make_head()
    with pytest.raises(CalibrantError, match=message):
        head_gram_from_weight(hidden, weight, tokens, mask, **options)
    with pytest.raises(CalibrantError, match=message):
        head_gram(hidden, hidden @ weight.T, tokens, mask, **options)


def test_bad_shapes():
    hidden, weight, tokens, mask = make_head()
    with pytest.raises(CalibrantError, match="D is 6 in hidden and 5 in weight"):
        head_gram_from_weight(hidden, weight[:, :5], tokens, mask)
    with pytest.raises(CalibrantError, match="T is 5 in hidden and 4 in tokens"):
        head_gram_from_weight(hidden, weight, tokens[..., :4], mask)
    with pytest.raises(CalibrantError, match="G is 4 in hidden and 3 in logits"):
        head_gram(hidden, (hidden @ weight.T)[:, :3], tokens, mask)
    with pytest.raises(CalibrantError, match="token 11 is not in a vocabulary of 11"):
        head_gram_from_weight(hidden, weight, torch.full_like(tokens, 11), torch.ones_like(mask))
    with pytest.raises(CalibrantError, match=r"tokens have to be integers, got torch\.float64"):
        head_gram_from_weight(hidden, weight, tokens.double(), mask)
    with pytest.raises(CalibrantError, match="a mask of tokens has to be boolean or integers"):
        head_gram_from_weight(hidden, weight, tokens, mask.double())
    with pytest.raises(CalibrantError, match="G is 3 in gram and 4 in gram"):
        head_gradient_dispersion(torch.zeros(1, 3, 4))
    with pytest.raises(CalibrantError, match="G is 3 in gram and 4 in advantages"):
        gradient_snr_weight(torch.zeros(1, 3, 3), torch.zeros(1, 4))
