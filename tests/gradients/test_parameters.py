"""Chosen parameters, and rollouts that do not count."""

import copy

import pytest
import torch
import transformers
from builders_gradients import INF, NAN, SMALL, TENSORS, assert_close, make_advantages, make_batch, oracle_gradients
from torch import nn

from calibrant.gradients import gradient_variance


def test_choosing_parameters(qwen2):
    batch, advantages = make_batch(), make_advantages()
    names = [name for name, _ in qwen2.named_parameters()]
    layer = [name for name in names if ".layers.1." in name]
    parts = []
    for chosen in (["*.layers.0.*"], ["*.layers.1.*"], lambda name: ".layers." not in name):
        hooks = gradient_variance(qwen2, batch, advantages, parameters=chosen)
        loop = gradient_variance(qwen2, batch, advantages, parameters=chosen, backend="loop")
        assert_close(hooks.variance, loop.variance, 1e-10)
        parts.append(hooks.variance)
    assert_close(sum(parts), gradient_variance(qwen2, batch, advantages).variance, 1e-10)
    by_name = gradient_variance(qwen2, batch, advantages, parameters=layer)
    assert_close(by_name.variance, parts[1], 1e-12)
    for parameter in qwen2.parameters():
        parameter.requires_grad_(False)
    qwen2.model.layers[1].requires_grad_(True)
    assert_close(gradient_variance(qwen2, batch, advantages).variance, parts[1], 1e-12)
    assert_close(gradient_variance(qwen2, batch, advantages, parameters="all").variance, sum(parts), 1e-10)
    bias = gradient_variance(qwen2, batch, advantages, parameters=["*q_proj.bias"])
    assert_close(
        bias.variance,
        gradient_variance(qwen2, batch, advantages, parameters=["*q_proj.bias"], backend="loop").variance,
        1e-10,
    )


def test_adapters(models):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"], lora_dropout=0.3, init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(models["qwen2"]), config).double().train()
    batch, advantages = make_batch(), make_advantages()
    hooks = gradient_variance(model, batch, advantages, gram=True)
    loop = gradient_variance(model, batch, advantages, gram=True, backend="loop")
    assert hooks.fallback == () and model.training
    assert_close(hooks.gram, loop.gram, 1e-10)
    assert_close(hooks.gram[0, 0, 0], oracle_gradients(model.eval(), batch)[0].square().sum(), 1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_the_model_is_left_as_it_was(models, training, backend):
    config = transformers.Qwen2Config(**SMALL, attention_dropout=0.5)
    model = transformers.Qwen2ForCausalLM(config).train(training)
    model.load_state_dict(models["qwen2"].state_dict())
    model.gradient_checkpointing_enable()
    model.model.layers[0].eval()
    model.model.norm.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones_like(model.model.norm.weight)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    required = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        first = gradient_variance(model, make_batch(), make_advantages(), backend=backend)
        assert not torch.is_grad_enabled()
    second = gradient_variance(model, make_batch(), make_advantages(), backend=backend)
    assert first.variance.equal(second.variance)  # no dropout
    assert modes == [module.training for module in model.modules()]
    assert required == [parameter.requires_grad for parameter in model.parameters()]
    assert (model.model.norm.weight.grad == 1).all()
    assert all(p.grad is None for p in model.parameters() if p is not model.model.norm.weight)
    assert hooks == [len(module._forward_hooks) for module in model.modules()]


@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_rollouts_without_an_advantage_do_not_count(qwen2, backend):
    batch, advantages = make_batch(1, 5), make_advantages(1, 5)
    rest = torch.tensor([0, 2, 3])
    kept = {key: rows[rest] for key, rows in batch.items()}
    clusters = torch.tensor([[1, 1, 1, 2, 2]])
    advantages[0, 1], advantages[0, 4] = NAN, INF
    found = gradient_variance(qwen2, batch, advantages, backend=backend, clusters=clusters, gram=True)
    options = dict(backend=backend, clusters=clusters[:, rest], gram=True)
    expected = gradient_variance(qwen2, kept, advantages[:, rest], **options)
    assert found.where.tolist() == [[True, False, True, True, False]]
    for name in set(TENSORS) - {"squared_norms", "gram"}:
        assert_close(getattr(found, name), getattr(expected, name), 1e-10)
    assert (found.squared_norms > 0).all()
    assert found.gram[0, 1].abs().max() == found.gram[0, :, 4].abs().max() == 0
    none = gradient_variance(qwen2, batch, torch.full((1, 5), NAN), backend=backend)
    assert none.variance.item() == none.score_variance.item() == 0 and not none.where.any()


@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_a_gradient_that_is_not_finite_takes_its_rollout_out_alone(qwen2, backend):
    batch, advantages = make_batch(1, 4), make_advantages(1, 4)
    batch["completion_ids"][batch["completion_ids"] == 60] = 59
    batch["completion_ids"][2, 0], batch["completion_mask"][2, :2] = 60, 1
    untied = copy.deepcopy(qwen2)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    with torch.no_grad():
        untied.model.embed_tokens.weight[60] = NAN
    found = gradient_variance(untied, batch, advantages, backend=backend)
    rest = torch.tensor([0, 1, 3])
    expected = gradient_variance(untied, {key: rows[rest] for key, rows in batch.items()}, advantages[:, rest])
    assert found.where.tolist() == [[True, True, False, True]]
    assert found.squared_norms[0, 2] == 0
    assert_close(found.variance, expected.variance, 1e-10)
    assert_close(found.score_variance, expected.score_variance, 1e-10)


def test_tokens_of_tools_are_read_but_not_scored(qwen2):
    batch, advantages = make_batch(1, 3), make_advantages(1, 3)
    batch["completion_mask"][:] = 1
    own = torch.tensor([[1, 1, 0, 0, 1]]).repeat(3, 1)
    ids = torch.cat([batch["prompt_ids"][:, -2:], batch["completion_ids"]], 1)
    short = batch | {"prompt_ids": batch["prompt_ids"][:, -2:], "prompt_mask": torch.ones(3, 2, dtype=torch.long)}
    found = gradient_variance(qwen2, short | {"tool_mask": own}, advantages, gram=True)
    logprobs = qwen2(input_ids=ids).logits[:, 1:-1].log_softmax(-1)
    for i in range(3):
        total = sum(logprobs[i, t, short["completion_ids"][i, t]] for t in (0, 1, 4))
        exact = sum(g.square().sum() for g in torch.autograd.grad(total, list(qwen2.parameters()), retain_graph=True))
        assert_close(found.squared_norms[0, i], exact, 1e-10)


def test_completions_without_tokens_have_no_gradient(qwen2):
    batch, advantages = make_batch(1, 3), make_advantages(1, 3)
    batch["completion_mask"][1] = 0
    for backend in ("hooks", "loop"):
        found = gradient_variance(qwen2, batch, advantages, backend=backend, reduction="mean")
        assert found.squared_norms[0, 1] == 0 and found.where.all()
        assert found.squared_norms[0, 0] > 0
        nothing = batch | {"completion_mask": torch.zeros_like(batch["completion_mask"])}
        assert gradient_variance(qwen2, nothing, advantages, backend=backend).variance.tolist() == [0.0]
