"""Generation on a shared prefill writes what generation writes."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from calibrant.policy import decode as decode_module
from calibrant.policy.block import find_blocks, recording_inputs
from calibrant.policy.decode import plain_sampling
from calibrant.policy.head import find_head, recording
from calibrant.policy.prefill import shared_prefill

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
    with shared_prefill(model):
        sampled(model, PROMPTS[ROWS], MASK[ROWS])  # compares both ways once
    model.get_input_embeddings().register_forward_hook(lambda _m, ids, _o: seen.append(tuple(ids[0].shape)))
    with shared_prefill(model):
        sampled(model, PROMPTS[ROWS], MASK[ROWS])
    assert seen[:2] == [(1, 2 + 4 + 3), (8, 1)]


@pytest.mark.parametrize(
    ("ids", "mask"), [(PROMPTS, MASK), (PROMPTS[ROWS][:, -1:], MASK[ROWS][:, -1:])], ids=["all distinct", "one token"]
)
def test_nothing_to_share(policy, ids, mask):
    model = AutoModelForCausalLM.from_pretrained(policy)
    plain, seen = sampled(model, ids, mask), []
    model.get_input_embeddings().register_forward_hook(lambda _m, ids, _o: seen.append(tuple(ids[0].shape)))
    with shared_prefill(model):
        assert torch.equal(plain, sampled(model, ids, mask))
    assert seen[0] == tuple(ids.shape)


def mistral():
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return MistralForCausalLM(MistralConfig(vocab_size=64, num_key_value_heads=2, sliding_window=6, **sizes))


DECODINGS = {
    "greedy": {"do_sample": False},
    "tempered": {"temperature": 2.0},
    "top k and p": {"top_k": 9, "top_p": 0.8},
    "repetition": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "at least": {"min_new_tokens": 5},
    "two ends": {"eos_token_id": [1, 2, 3, 4, 5, 6, 7, 8]},
    "no padding token": {"pad_token_id": None, "eos_token_id": [5, 1, 2, 3]},
}


@pytest.mark.parametrize("build", [gpt2, llama, mistral])
@pytest.mark.parametrize("decoding", DECODINGS)
def test_finished_rows_are_dropped_from_the_same_samples(build, decoding):
    torch.manual_seed(0)
    model = build().double().eval()
    options = {"do_sample": True, "max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": [1, 2, 3, 4]}
    options |= DECODINGS[decoding]
    ids, mask = (x[ROWS].repeat(4, 1) for x in (PROMPTS, MASK))

    def written():
        torch.manual_seed(3)
        return model.generate(input_ids=ids, attention_mask=mask, **options)

    plain, rows = written(), []
    with shared_prefill(model):
        written()  # compares both ways once
    model.get_input_embeddings().register_forward_hook(lambda _m, x, _o: rows.append(len(x[0])))
    with shared_prefill(model):
        shared = written()
    assert torch.equal(plain, shared)
    assert rows[1] == len(ids) and rows[1:] == sorted(rows[1:], reverse=True)
    if decoding != "greedy":
        assert rows[-1] < len(ids) / 2


@pytest.mark.parametrize("build", [gpt2, llama, mistral])
def test_states_that_were_read_while_decoding(build):
    """Against one forward pass over what was written; rows that have ended have no states any more."""
    torch.manual_seed(0)
    model = build().double().eval()
    ids, mask = (x[ROWS].repeat(4, 1) for x in (PROMPTS, MASK))
    options = {"do_sample": True, "max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": [1, 2, 3, 4]}
    with shared_prefill(model, states=True) as decoded:
        written = model.generate(input_ids=ids, attention_mask=mask, **options)
    own = written[:, ids.shape[1] :]
    kept = torch.isin(own, torch.tensor([1, 2, 3, 4])).long().cumsum(1).roll(1, 1)
    kept[:, 0] = 0
    kept = kept == 0  # up to the end of each row
    found = decoded.states_of(own, kept)
    whole = torch.cat([mask, torch.ones_like(own)], dim=1)
    positions = (whole.cumsum(-1) - 1).clamp(min=0)
    with recording(find_head(model).module) as calls, torch.no_grad():
        model(input_ids=written, attention_mask=whole, position_ids=positions)
    expected = calls[0][0][:, ids.shape[1] - 1 : -1]
    assert len(decoded.rows[-1]) < len(ids) and not kept.all()
    torch.testing.assert_close(found[kept], expected[kept])
    cut = decoded.states_of(own[:, :2], kept[:, :2])
    assert torch.equal(cut, found[:, :2])


@pytest.mark.parametrize("build", [gpt2, llama])
def test_what_the_last_block_read_while_decoding(build):
    torch.manual_seed(0)
    model = build().double().eval()
    ids, mask = (x[ROWS].repeat(4, 1) for x in (PROMPTS, MASK))
    with shared_prefill(model, states=True, block=True) as decoded:
        written = sampled(model, ids, mask)
    own = written[:, ids.shape[1] :]
    kept = (own == 1).long().cumsum(1).roll(1, 1)
    kept[:, 0] = 0
    kept = kept == 0
    found = decoded.block_inputs_of(own, kept)
    whole = torch.cat([mask, torch.ones_like(own)], dim=1)
    with recording_inputs(find_blocks(model)[-1]) as calls, torch.no_grad():
        model(input_ids=written, attention_mask=whole, position_ids=(whole.cumsum(-1) - 1).clamp(min=0))
    before = ids.shape[1] - 1
    torch.testing.assert_close(found.rollouts[kept], calls[0][:, before:-1][kept])
    assert len(found.prompts) == 3 and not torch.equal(found.rollouts[0], found.rollouts[1])
    for row in range(8):
        torch.testing.assert_close(found.of_prompt(row), calls[0][row, :before][mask[row, :-1].bool()])
    assert decoded.block_inputs_of(own + 1, kept) is None
    with shared_prefill(model, states=True) as decoded:
        sampled(model, ids, mask)
    assert decoded.block_inputs_of(own, kept) is None  # not asked for


def test_states_of_other_completions_are_not_given():
    model, own = llama().eval(), torch.tensor([[5, 6]] * 8)
    with shared_prefill(model, states=True) as decoded:
        written = sampled(model, PROMPTS[ROWS], MASK[ROWS])[:, PROMPTS.shape[1] :]
    every = torch.ones_like(written)
    assert decoded.states_of(written, every) is not None
    assert decoded.states_of(own, torch.ones_like(own)) is None
    assert decoded.states_of(written[:4], every[:4]) is None
    assert decoded.states_of(torch.cat([written, written], dim=1), torch.cat([every, every], dim=1)) is None
    assert decoded.states_of(written[:, :0], every[:, :0]) is None
    with shared_prefill(model, states=True) as decoded:
        sampled(model, PROMPTS, MASK)
    assert decoded.states_of(written, every) is None  # nothing was shared


class Doubling(LlamaForCausalLM):
    """Does something to its logits that its head knows nothing of."""

    def forward(self, *arguments, **keywords):
        output = super().forward(*arguments, **keywords)
        output.logits = 2 * output.logits
        return output


def test_states_that_do_not_lead_to_the_logits_are_not_given():
    torch.manual_seed(0)
    model = Doubling(llama().config).eval()
    plain = sampled(model, PROMPTS[ROWS], MASK[ROWS])
    with shared_prefill(model, states=True) as decoded:
        assert torch.equal(plain, sampled(model, PROMPTS[ROWS], MASK[ROWS]))
    assert decoded.states_of(plain[:, PROMPTS.shape[1] :], torch.ones(8, 1)) is None


def test_prompts_without_padding():
    model = llama().double().eval()
    ids = PROMPTS[1:2].repeat(8, 1)
    plain = sampled(model, ids, torch.ones_like(ids))
    with shared_prefill(model):
        assert torch.equal(plain, sampled(model, ids, torch.ones_like(ids)))
        assert torch.equal(plain, sampled(model, ids, None))


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"num_return_sequences": 2}, {"return_dict_in_generate": True, "output_scores": True}]
)
def test_other_ways_of_generation_are_left_alone(options):
    torch.manual_seed(0)
    model = llama().double().eval()
    plain = sampled(model, PROMPTS[ROWS], MASK[ROWS], **options)
    with shared_prefill(model):
        shared = sampled(model, PROMPTS[ROWS], MASK[ROWS], **options)
    assert torch.equal(getattr(plain, "sequences", plain), getattr(shared, "sequences", shared))
    assert type(plain) is type(shared)


def test_nothing_is_shared_with_sharded_weights(monkeypatch):
    model, options = llama().eval(), {"input_ids": PROMPTS, "attention_mask": MASK, "do_sample": True}
    assert plain_sampling(model, options)
    monkeypatch.setattr(decode_module, "is_fsdp_managed_module", lambda _: True)
    assert not plain_sampling(model, options)
