"""Inner products of the gradients of an output head."""

import math

import pytest
import torch
import transformers
from builders_head import make_head, oracle_gradients
from torch import nn

from calibrant.gradients import gradient_variance
from calibrant.signals import grams
from calibrant.signals.gradient import (
    head_gradient_dispersion,
    head_gradient_variance,
    head_gram,
    head_gram_from_weight,
)

NAN, INF = math.nan, math.inf


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
        monkeypatch.setattr(grams, "cheapest_route", lambda *_, route=route: route)
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
