import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibrant.errors import CalibrantError
from calibrant.gradients import gradient_variance
from calibrant.signals import grams
from calibrant.signals.gradient import (
    gradient_snr_weight,
    head_gradient_dispersion,
    head_gradient_variance,
    head_gram,
    head_gram_from_weight,
)

NAN, INF = math.nan, math.inf


def make_head(shape=(2, 4, 5), width=6, vocabulary=11, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, vocabulary, shape, generator=generator)
    mask = torch.arange(shape[-1]) < torch.randint(0, shape[-1] + 1, (*shape[:-1], 1), generator=generator)
    return hidden.to(dtype), weight.to(dtype), tokens, mask


def oracle_gradients(hidden, weight, tokens, mask, temperature=1.0, bias=None):
    """Autograd's gradient of each rollout's log-likelihood with respect to the head's weight, `[N, G, V * D]`."""
    rows = []
    for h, y, m in zip(hidden.flatten(0, 1), tokens.flatten(0, 1), mask.flatten(0, 1), strict=True):
        head = weight.detach().clone().requires_grad_()
        logprobs = ((h @ head.T + (0 if bias is None else bias)) / temperature).log_softmax(-1)
        total = sum((logprobs[t, y[t]] for t in range(len(y)) if m[t]), (head * 0).sum())
        rows.append(torch.autograd.grad(total, head)[0].flatten())
    return torch.stack(rows).unflatten(0, hidden.shape[:2])


def oracle_variance(gradients, advantages):
    weighted = advantages[:, None] * gradients
    return (weighted - weighted.mean(0)).square().sum(-1).mean()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("biased", [False, True])
def test_the_gram_is_that_of_autograd(temperature, biased):
    hidden, weight, tokens, mask = make_head()
    bias = torch.linspace(-1, 1, 11, dtype=torch.float64) if biased else None
    gradients = oracle_gradients(hidden, weight, tokens, mask, temperature, bias)
    expected = gradients @ gradients.mT
    logits = hidden @ weight.T + (0 if bias is None else bias)
    assert torch.allclose(head_gram(hidden, logits, tokens, mask, temperature=temperature), expected, atol=1e-12)
    found = head_gram_from_weight(hidden, weight, tokens, mask.long(), bias=bias, temperature=temperature)
    assert torch.allclose(found, expected, atol=1e-12)
    logprobs = logits.log_softmax(-1)
    assert torch.allclose(head_gram(hidden, logprobs, tokens, mask, temperature=temperature), expected, atol=1e-12)


def test_many_chunks_and_both_routes(monkeypatch):
    hidden, weight, tokens, mask = make_head()
    expected = head_gram_from_weight(hidden, weight, tokens, mask)
    monkeypatch.setattr(grams, "NARROWEST", 1)
    monkeypatch.setattr(grams, "CHUNK", 60)
    for route in ("tokens", "explicit"):
        monkeypatch.setattr(grams, "cheapest", lambda *_, route=route: route)
        for options in ({}, {"top": 11}, {"top": 3}):
            found = head_gram_from_weight(hidden, weight, tokens, mask, **options)
            same = head_gram(hidden, hidden @ weight.T, tokens, mask, **options)
            assert torch.allclose(found, same, atol=1e-12)
            if options in ({}, {"top": 11}):
                assert torch.allclose(found, expected, atol=1e-12)


def test_a_model_whose_head_is_its_own():
    """The gram of a model's head, from its hidden states, is that of the full gradients with respect to the head."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.LlamaConfig(vocab_size=37, num_key_value_heads=2, tie_word_embeddings=False, **sizes)
    model = transformers.LlamaForCausalLM(config).double().eval()
    prompt, completion = torch.randint(0, 37, (1, 4)).repeat(3, 1), torch.randint(0, 37, (3, 5))
    mask = torch.arange(5) < torch.tensor([[5], [2], [4]])
    batch = dict(prompt_ids=prompt, prompt_mask=torch.ones(3, 4).long(), completion_ids=completion)
    advantages = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    full = gradient_variance(
        model,
        {**batch, "completion_mask": mask.long()},
        advantages,
        parameters=["lm_head.weight"],
        gram=True,
        temperature=0.8,
    )
    with torch.no_grad():
        hidden = model.model(torch.cat([prompt, completion], 1)).last_hidden_state[:, 3:-1][None]
        found = head_gram(hidden, model.lm_head(hidden), completion[None], mask[None], temperature=0.8)
    assert torch.allclose(found, full.gram, rtol=1e-10)
    assert torch.allclose(head_gradient_variance(found, advantages), full.variance, rtol=1e-10)


def peaked(vocabulary=400, seed=0):
    """A head as trained ones are: most probability on a few tokens."""
    hidden, weight, _, mask = make_head((3, 6, 8), 16, vocabulary, seed)
    logits = 1.2 * hidden @ weight.T
    sampled = torch.distributions.Categorical(logits=logits)
    torch.manual_seed(seed)
    return hidden, logits, sampled.sample(), mask


def error(found, exact):
    norms = exact.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = (norms[..., :, None] * norms[..., None, :]).clamp(min=1e-9)
    return ((found - exact) / scale)[exact != 0].abs()


def test_the_error_of_the_most_probable_columns_falls_quickly():
    head = peaked()
    exact = head_gram(*head)
    errors = [error(head_gram(*head, top=k), exact).max().item() for k in (1, 4, 16, 400)]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[1] < 0.1 and errors[2] < 1e-3 and errors[3] < 1e-12
    assert error(head_gram(*head, top=4), exact).median() < 1e-4


def test_the_rest_of_the_probability_counts():
    """A flat distribution: every column is in the rest, and evenly spread is exact."""
    hidden, _, tokens, mask = make_head()
    flat = torch.zeros(2, 4, 5, 500, dtype=torch.float64)
    exact = head_gram(hidden, flat, tokens, mask)
    assert error(head_gram(hidden, flat, tokens, mask, top=1), exact).max() < 1e-12


def test_what_is_masked_is_not_read():
    hidden, weight, tokens, mask = make_head()
    mask[0, 1] = False
    logits = hidden @ weight.T
    expected = head_gram(hidden, logits, tokens, mask)
    assert expected[0, 1].abs().max() == 0
    spoilt = torch.where(mask[..., None], hidden, NAN), torch.where(mask[..., None], logits, NAN)
    for options in ({}, {"top": 11}):
        found = head_gram(*spoilt, torch.where(mask, tokens, -100), mask, **options)
        assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("options", [{}, {"top": 2}])
def test_a_token_that_is_no_number_takes_its_rollout_out_alone(bad, options):
    hidden, weight, tokens, mask = make_head()
    mask[:] = True
    logits = hidden @ weight.T
    expected = head_gram(hidden, logits, tokens, mask)
    spoilt, states = logits.clone(), hidden.clone()
    spoilt[0, 2, 1, 3], states[0, 2, 1, 3] = bad, bad
    for found in (
        head_gram(hidden, spoilt, tokens, mask, **options),
        head_gram(states, logits, tokens, mask, **options),
        head_gram_from_weight(states, weight, tokens, mask, **options),
    ):
        assert torch.isfinite(found).all()
        assert found[0, 2].abs().max() == found[0, :, 2].abs().max() == 0
        if not options:
            assert torch.allclose(found[0, [0, 1, 3]][:, [0, 1, 3]], expected[0, [0, 1, 3]][:, [0, 1, 3]], atol=1e-12)
            assert torch.allclose(found[1], expected[1], atol=1e-12)


def test_impossible_tokens_are_fine():
    hidden, weight, tokens, mask = make_head()
    logits = hidden @ weight.T
    logits[..., 10] = -INF
    tokens[tokens == 10] = 3
    short = head_gram(hidden, logits[..., :10], tokens, mask)
    assert torch.allclose(head_gram(hidden, logits, tokens, mask), short, atol=1e-12)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.15)])
def test_types(dtype, tolerance):
    hidden, weight, tokens, mask = make_head()
    exact = head_gram_from_weight(hidden, weight, tokens, mask)
    found = head_gram_from_weight(hidden.to(dtype), weight.to(dtype), tokens, mask)
    assert found.dtype == torch.float64
    assert (found - exact).abs().max() < tolerance * exact.max()
    assert head_gradient_variance(found, torch.ones(2, 4, dtype=dtype)).dtype == dtype
    assert head_gradient_dispersion(found.to(dtype)).dtype == dtype


def test_nothing_is_differentiated_and_leading_axes_are_kept():
    hidden, weight, tokens, mask = make_head()
    weight = nn.Parameter(weight)
    assert not head_gram_from_weight(hidden, weight, tokens, mask).requires_grad
    assert not head_gram(hidden, hidden @ weight.T, tokens, mask).requires_grad
    more = head_gram_from_weight(hidden[None, None], weight, tokens[None, None], mask[None, None])
    assert more.shape == (1, 1, 2, 4, 4)
    assert torch.allclose(more[0, 0], head_gram_from_weight(hidden, weight, tokens, mask))
    empty = head_gram_from_weight(hidden[:, :, :0], weight, tokens[:, :, :0], mask[:, :, :0])
    assert empty.equal(torch.zeros(2, 4, 4, dtype=torch.float64))
    assert head_gram_from_weight(hidden[:0], weight, tokens[:0], mask[:0]).shape == (0, 4, 4)


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
