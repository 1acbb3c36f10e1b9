"""Inner products of layers and their routes."""

import copy

import pytest
import torch
from builders_gradients import assert_close, make_advantages, make_batch, oracle_gradients
from torch import nn

from calibrant.gradients import gradient_variance
from calibrant.signals import grams


def test_a_tied_weight_has_one_gradient(qwen2):
    """|E + H|^2, not |E|^2 + |H|^2: the cross term of embedding and head is no detail."""
    batch, advantages = make_batch(), make_advantages()
    found = gradient_variance(qwen2, batch, advantages, parameters=["lm_head.weight"]).squared_norms
    untied = copy.deepcopy(qwen2)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    embedding = gradient_variance(untied, batch, advantages, parameters=["*embed_tokens.weight"])
    head = gradient_variance(untied, batch, advantages, parameters=["lm_head.weight"])
    without = embedding.squared_norms + head.squared_norms
    for parameter in qwen2.parameters():
        parameter.requires_grad_(parameter is qwen2.lm_head.weight)
    exact = oracle_gradients(qwen2, batch).square().sum(-1).view(2, 3)
    assert_close(found, exact, 1e-10)
    assert ((without - exact).abs() / exact).max() > 0.01


def test_padding_token_of_an_embedding_gets_no_gradient_also_in_the_text(models):
    model = copy.deepcopy(models["llama"]).double()
    assert model.model.embed_tokens.padding_idx == 5
    batch = make_batch()
    batch["prompt_ids"][:, -2] = 5
    expected = oracle_gradients(model, batch).square().sum(-1).view(2, 3)
    assert_close(gradient_variance(model, batch, make_advantages()).squared_norms, expected, 1e-10)


@pytest.mark.parametrize("rollouts,tokens,width_in,width_out", [(3, 2, 40, 90), (4, 30, 5, 7), (1, 1, 1, 1)])
def test_routes_agree_and_each_is_taken(rollouts, tokens, width_in, width_out):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rollouts, tokens, width_in, generator=generator, dtype=torch.float64)
    outputs = torch.randn(rollouts, tokens, width_out, generator=generator, dtype=torch.float64)
    matrices = torch.einsum("gto,gti->goi", outputs, inputs).flatten(1)
    for route in (grams.explicit_gram, grams.token_gram):
        assert_close(route(inputs, [outputs]), matrices @ matrices.T, 1e-13)
        assert_close(route(inputs, outputs.split(3, -1)), matrices @ matrices.T, 1e-13)
    assert_close(grams.matrix_gram(inputs, outputs.split(5, -1), width_out), matrices @ matrices.T, 1e-13)


@pytest.mark.parametrize("shared", [1, 3, 6])
def test_rollouts_that_begin_alike(shared):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    inputs[:, :shared] = inputs[:1, :shared]
    outputs = torch.randn(4, 6, 7, generator=generator, dtype=torch.float64)
    matrices = torch.einsum("gto,gti->goi", outputs, inputs).flatten(1)
    assert grams.common_start(inputs) == shared
    assert_close(grams.token_gram(inputs, outputs.split(3, -1), shared), matrices @ matrices.T, 1e-13)


def test_where_rollouts_part():
    inputs = torch.zeros(3, 5, 2)
    assert grams.common_start(inputs) == grams.common_start(inputs[:1]) == 5
    inputs[2, 3] = 1.0
    assert grams.common_start(inputs) == 3 and grams.common_start(inputs[:2]) == 5
    inputs[0, 1, 1] = torch.nan  # equals nothing, itself neither
    assert grams.common_start(inputs) == 1


def test_the_route_follows_the_cost():
    assert grams.cheapest_route((16, 8, 512), 150_000) == "tokens"
    assert grams.cheapest_route((16, 300, 512), 1408) == "explicit"
    assert grams.cheapest_route((16, 88, 512), 1408, shared=80) == "shared"
    assert grams.cheapest_route((16, 356, 512), 1408, shared=100) == "explicit"
    assert grams.cheapest_route((8, 1000, 100_000), 100_000) == "tokens"
    assert grams.cheapest_route((10, 1000, 100_000), 100_000) == "explicit"  # too much memory for pairs of tokens


def test_inner_products_carry_small_differences_of_long_rows():
    rows = 1 + 1e-4 * torch.randn(6, 5000, generator=torch.Generator().manual_seed(0))
    gram, exact = grams.row_gram(rows), (rows.double() - rows.double().mean(0)).square().sum(-1).mean()
    assert (gram.diagonal().mean() - gram.mean()).item() == pytest.approx(exact.item(), rel=1e-6)


def test_each_route_serves_every_layer(qwen2, monkeypatch):
    batch, advantages = make_batch(), make_advantages()
    expected = gradient_variance(qwen2, batch, advantages, gram=True).gram
    for route in grams.ROUTES:
        monkeypatch.setattr(grams, "cheapest_route", lambda *_, route=route: route)
        monkeypatch.setattr(grams, "NARROWEST", 1)
        monkeypatch.setattr(grams, "CHUNK", 300)  # several chunks a layer
        assert_close(gradient_variance(qwen2, batch, advantages, gram=True).gram, expected, 1e-11)
