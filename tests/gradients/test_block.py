"""Inner products of the last block's gradients: against autograd, and where they cannot be had."""

import copy

import pytest
import torch
import transformers
from builders_gradients import SMALL, VOCABULARY, assert_close, build, make_batch, oracle_gradients
from peft import LoraConfig, get_peft_model
from torch import nn

from calibrant.errors import CalibrantError
from calibrant.gradients import block, block_gram
from calibrant.policy.block import BlockInputs, find_blocks, recording_inputs

TINY = SMALL | dict(head_dim=8, num_hidden_layers=3, pad_token_id=0)


def grouped(batch, groups):
    return {name: values.view(groups, -1, values.shape[-1]) for name, values in batch.items()}


def by_autograd(model, batch, temperature=1.0):
    """Inner products of gradients of the last block's trained parameters, each rollout alone and without padding."""
    flat = {name: values.flatten(0, 1) for name, values in batch.items()}
    model, last = copy.deepcopy(model), None
    last = {id(parameter) for parameter in find_blocks(model)[-1].parameters() if parameter.requires_grad}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in last)
    gradients = oracle_gradients(model, flat, temperature).view(*batch["prompt_ids"].shape[:2], -1)
    return gradients @ gradients.mT


def windowed(last):
    """Gemma 3 whose last block attends to a window of three tokens, or to all."""
    types = ["full_attention", "sliding_attention", "full_attention"]
    types[-1] = f"{last}_attention"
    config = transformers.Gemma3TextConfig(**TINY, sliding_window=3, layer_types=types)
    torch.manual_seed(0)
    return transformers.Gemma3ForCausalLM(config).eval()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "sliding", "full"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_as_autograd_has_them_one_rollout_at_a_time(family, temperature):
    """Biases, tied heads (Qwen2), norms of queries and keys (Qwen3, Gemma 3), windows, transposed weights (GPT-2)."""
    model = (windowed(family) if family in ("sliding", "full") else build(family)).double()
    batch = grouped(make_batch(groups=3, rollouts=4, prompt=9, completion=6), 3)
    expected = by_autograd(model, batch, temperature)
    found = block_gram(model, batch, temperature=temperature)
    assert found.dtype == torch.float64 and expected.std() > 0.05 * expected.max()
    assert_close(found, expected, 1e-6)  # norms and softmax of these models are float32


def test_short_prompts_empty_completions_and_tokens_of_tools(qwen2):
    batch = grouped(make_batch(groups=3, rollouts=4, prompt=6, completion=6), 3)
    batch["prompt_mask"][0] = (torch.arange(6) == 5).long()  # one token: nothing comes before it
    batch["completion_mask"][1, 2] = 0
    batch["completion_mask"][2] = 0
    expected = by_autograd(qwen2, batch)
    found = block_gram(qwen2, batch)
    assert_close(found, expected, 1e-6)
    assert (found[1, 2] == 0).all() and (found[2] == 0).all() and found[0].abs().max() > 0
    tools = torch.ones_like(batch["completion_mask"])
    tools[:, :, 1] = 0
    other = block_gram(qwen2, batch | {"tool_mask": tools})
    assert not torch.allclose(found[1], other[1])
    masked = batch["completion_mask"] * tools
    assert_close(other, block_gram(qwen2, batch | {"completion_mask": masked}), 1e-12)


def test_what_was_recorded_is_not_computed_again(qwen2, monkeypatch):
    batch = grouped(make_batch(groups=2, rollouts=3), 2)
    expected, before, reads = block_gram(qwen2, batch), [], []
    for group in block._groups(batch):
        reads.append(block._recorded(block._last_block(qwen2, group.prompt), group))
    longest = max(len(read.prompt) for read in reads)
    where = torch.stack([torch.arange(longest) < len(read.prompt) for read in reads])
    prompts, rollouts = (torch.zeros(*shape, 16).double() for shape in ((2, longest), (6, 8)))
    for n, read in enumerate(reads):
        prompts[n, : len(read.prompt)] = read.prompt
        rollouts[3 * n : 3 * n + 3, : read.rollouts.shape[1]] = read.rollouts
    inputs = BlockInputs(prompts, where, torch.tensor([0, 0, 0, 1, 1, 1]), rollouts)
    handle = find_blocks(qwen2)[0].mlp.register_forward_hook(lambda *_: before.append(1))
    found = block_gram(qwen2, batch, inputs=inputs)
    handle.remove()
    assert torch.equal(found, expected)
    assert len(before) == 1  # of the probe that finds the layers: no other pass goes through earlier blocks


def test_adapters_alone_where_the_rest_is_frozen(qwen2):
    model = get_peft_model(qwen2, LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    batch = grouped(make_batch(groups=2, rollouts=3), 2)
    assert_close(block_gram(model, batch), by_autograd(model.eval(), batch), 1e-6)


def test_the_model_is_as_it_was(qwen2):
    qwen2.train()
    qwen2.model.layers[0].weight_of_mine = vars(qwen2.model.layers[0])["forward"] = qwen2.model.layers[0].forward
    block_gram(qwen2, grouped(make_batch(), 2))
    assert qwen2.training and all(p.requires_grad and p.grad is None for p in qwen2.parameters())
    assert vars(qwen2.model.layers[0])["forward"] is qwen2.model.layers[0].weight_of_mine
    assert "forward" not in vars(qwen2.lm_head) and not qwen2.model.layers[-1]._forward_pre_hooks


def test_experts_have_no_rule():
    config = transformers.MixtralConfig(**TINY, num_local_experts=4)
    with pytest.raises(CalibrantError, match=r"no rule for the parameter 'mlp.*' of the last block of MixtralFor"):
        block_gram(transformers.MixtralForCausalLM(config).eval(), grouped(make_batch(), 2))


def test_a_block_that_reads_more_than_its_input_is_found_out(qwen2):
    kept = []
    qwen2.model.layers[0].register_forward_hook(lambda _module, _args, output: kept.append(output))
    qwen2.model.layers[-1].register_forward_hook(lambda _module, _args, output: output + kept[-1])
    with pytest.raises(CalibrantError, match=r"the last block of Qwen2ForCausalLM cannot be run alone .* output head"):
        block_gram(qwen2, grouped(make_batch(), 2))


def test_refusals(qwen2):
    batch = grouped(make_batch(), 2)
    mixed = batch | {"prompt_ids": batch["prompt_ids"].clone()}
    mixed["prompt_ids"][1, 0, -1] += 1
    with pytest.raises(CalibrantError, match="rollouts of group 1 have no prompt, or different ones"):
        block_gram(qwen2, mixed)
    with pytest.raises(CalibrantError, match="temperature"):
        block_gram(qwen2, batch, temperature=0.0)
    with pytest.raises(CalibrantError, match="prompt_ids has 2 axes instead of 3"):
        block_gram(qwen2, make_batch())
    for parameter in qwen2.model.layers[-1].parameters():
        parameter.requires_grad_(False)
    with pytest.raises(CalibrantError, match="no parameter of the last block of Qwen2ForCausalLM is trained"):
        block_gram(qwen2, batch)
    qwen2.config.num_hidden_layers = 7
    with pytest.raises(CalibrantError, match="no list of 7 blocks"):
        find_blocks(qwen2)


def test_a_head_that_is_no_linear_layer(qwen2):
    batch = grouped(make_batch(), 2)
    expected = block_gram(qwen2, batch)

    class Head(nn.Linear):
        def forward(self, states):
            return super().forward(states)

    head = Head(SMALL["hidden_size"], VOCABULARY, bias=False).double()
    head.weight = qwen2.lm_head.weight
    qwen2.lm_head = head
    assert_close(block_gram(qwen2, batch), expected, 1e-10)


def test_inputs_of_a_block_by_name():
    class Named(nn.Module):
        def forward(self, *, hidden_states):
            return hidden_states

    named = Named()
    with recording_inputs(named) as calls:
        named(hidden_states=torch.ones(1, 2, 3))
    assert [call.shape for call in calls] == [(1, 2, 3)] and not named._forward_pre_hooks
