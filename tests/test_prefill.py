"""Generation on a shared prefill writes what generation writes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from calibrant.prefix.prefill import prefilled, shared_prefill

PROMPTS = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5], [0, 3, 3, 4, 9]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
ROWS = torch.tensor([0, 0, 1, 2, 1, 0, 2, 2])


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def llama():
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes))


def sampled(model, ids, mask, **options):
    torch.manual_seed(3)
    return model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, max_new_tokens=12, pad_token_id=0, eos_token_id=1, **options
    )


@pytest.mark.parametrize("build", [gpt2, llama])
def test_the_same_samples(build):
    torch.manual_seed(0)
    model = build().double().eval()
    plain = sampled(model, PROMPTS[ROWS], MASK[ROWS])
    with shared_prefill(model):
        shared = sampled(model, PROMPTS[ROWS], MASK[ROWS])
    assert torch.equal(plain, shared)
    assert "generate" not in vars(model)


def test_prompts_are_read_once(policy):
    model, seen = AutoModelForCausalLM.from_pretrained(policy), []
    model.get_input_embeddings().register_forward_hook(lambda _m, ids, _o: seen.append(tuple(ids[0].shape)))
    with shared_prefill(model):
        sampled(model, PROMPTS[ROWS], MASK[ROWS])
    assert seen[:2] == [(3, 4), (8, 1)]


@pytest.mark.parametrize(
    ("ids", "mask"), [(PROMPTS, MASK), (PROMPTS[ROWS][:, -1:], MASK[ROWS][:, -1:])], ids=["all distinct", "one token"]
)
def test_nothing_to_share(policy, ids, mask):
    model = AutoModelForCausalLM.from_pretrained(policy)
    assert prefilled(model, ids, mask) is None
    plain = sampled(model, ids, mask)
    with shared_prefill(model):
        assert torch.equal(plain, sampled(model, ids, mask))
