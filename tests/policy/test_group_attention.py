"""Decoding on prompts that are held once writes what generation writes, for each kind of attention, or falls back."""

import re
import warnings

import pytest
import torch
from architectures import tiny
from peft import LoraConfig, get_peft_model
from small_models import SIZE
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GptOssConfig, GptOssForCausalLM, cache_utils

from calibrant.policy import prompt_attention
from calibrant.policy.casts import weights_cast_once
from calibrant.policy.group_attention import NAME
from calibrant.policy.prefill import GROUPED, REPEATED, prefilled, shared_prefill
from calibrant.policy.verify import record_of

WINDOW = dict(sliding_window=6)
MIXED = WINDOW | dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])
KINDS = {
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": MIXED,
    "gemma2": MIXED | dict(attn_logit_softcapping=1.0, query_pre_attn_scalar=1, final_logit_softcapping=3.0),
    "mixtral": dict(num_local_experts=4),
    "mistral": WINDOW,
    "gpt2": dict(n_embd=16, n_layer=3, n_head=4),
    "llama": dict(num_key_value_heads=1),
}
WHICH = torch.tensor([0, 2, 1, 0, 0, 2, 3, 0, 3, 0, 0])  # in mixed order, of different numbers of rows


def model_of(kind):
    """A small random model whose next-token distributions are far from flat."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=23, pad_token_id=0) if kind == "gpt2" else SIZE
    config = AutoConfig.for_model(kind, **sizes | KINDS[kind])
    attention = "eager" if kind == "gemma2" else "sdpa"  # which has no soft caps
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.ndim > 1 else weight.add_(torch.randn_like(weight) / 10)
    return model.eval()


def prompts(which=WHICH, vocabulary=23):
    """Four prompts of 20, 4, 9 and 2 tokens, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, vocabulary, (4, 20), generator=generator)
    mask = (torch.arange(20) >= 20 - torch.tensor([20, 4, 9, 2])[:, None]).long()
    return (ids * mask)[which], mask[which]


def sampled(model, ids, mask, **options):
    torch.manual_seed(3)
    return model.generate(
        input_ids=ids, attention_mask=mask, pad_token_id=0, eos_token_id=[1, 2, 3],
        **{"do_sample": True, "max_new_tokens": 15, **options},
    )  # fmt: skip


def both(model, ids, mask, **options):
    """What is sampled without and with shared prompts."""
    plain = sampled(model, ids, mask, **options)
    with shared_prefill(model):
        return plain, sampled(model, ids, mask, **options)


@pytest.mark.parametrize("which", [WHICH, torch.arange(4).repeat_interleave(3)], ids=["ragged", "even"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_samples_of_generate(kind, which):
    model = model_of(kind)
    plain, shared = both(model, *prompts(which))
    ends = torch.isin(plain[:, 20:], torch.tensor([1, 2, 3])).any(1)
    assert torch.equal(plain, shared)
    assert 0 < ends.sum() < len(ends)  # some leave early
    assert GROUPED in record_of(model).verified and not record_of(model).failed
    assert all(getattr(m, "config", model.config)._attn_implementation != NAME for m in model.modules())


def related():
    """Five prompts of which some begin alike: all tokens of the second, and 12 of the first, stand in others."""
    ids, mask = prompts(torch.tensor([0, 0, 0, 3, 0]))
    ids[1], mask[1] = ids[0].roll(6), mask[0]
    mask[1, :6] = 0
    ids[2, 12:] = 5
    ids[4, -1] = 6
    return ids * mask, mask


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_begin_alike(kind):
    """Their samples are those of `generate`, and what they begin with is read once, in whatever order they come."""
    (ids, mask), model = related(), model_of(kind)
    for which in (torch.tensor([0, 1, 2, 3, 4, 2, 1, 0, 4, 4]), torch.tensor([4, 2, 3, 3, 2, 1, 1, 0])):
        plain, shared = both(model, ids[which], mask[which])
        assert torch.equal(plain, shared) and not record_of(model).failed
    assert prompt_attention.prompt_row(ids[:, :-1], mask[:, :-1]).ids.shape == (1, 19 + 7 + 1)


def test_the_embedded_policy(policy, questions):
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    texts = [x["prompt"] for x in questions.select(range(4)) for _ in range(4)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    options = {"eos_token_id": tokenizer.eos_token_id, "max_new_tokens": 24}
    torch.manual_seed(3)
    plain = model.generate(**inputs, do_sample=True, **options)
    torch.manual_seed(3)
    with shared_prefill(model):
        assert torch.equal(model.generate(**inputs, do_sample=True, **options), plain)
    assert not record_of(model).failed


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "gemma2"])
def test_prompts_longer_than_a_block(kind, monkeypatch):
    monkeypatch.setattr(prompt_attention, "BLOCK", 7)
    plain, shared = both(model := model_of(kind), *prompts())
    assert torch.equal(plain, shared) and not record_of(model).failed


def test_padding_that_is_not_on_the_left_is_left_to_the_models_own_attention():
    ids, mask = prompts()
    mask[:, 12:14] = 0
    model = model_of("qwen3")
    plain, shared = both(model, ids * mask, mask)
    assert torch.equal(plain, shared) and not record_of(model).failed


def test_more_own_tokens_than_room_and_window():
    plain, shared = both(model_of("gemma3_text"), *prompts(), max_new_tokens=70, min_new_tokens=70)
    assert torch.equal(plain, shared)


def test_with_an_adapter():
    model = model_of("qwen3")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            weight.add_(torch.randn_like(weight) if "lora_B" in name else 0.0)
    plain, shared = both(adapted, *prompts())
    with adapted.disable_adapter():
        assert not torch.equal(plain, sampled(adapted, *prompts()))  # the adapter matters
    assert torch.equal(plain, shared) and not record_of(adapted).failed


def gpt_oss():
    torch.manual_seed(0)
    return GptOssForCausalLM(GptOssConfig(**SIZE, num_local_experts=4, layer_types=["full_attention"] * 3)).eval()


FALLBACKS = {
    "sinks": (gpt_oss, "s_aux"),
    "not registered": (lambda: tiny("gptj"), "functions that transformers registers|group_cache"),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_other_attention_decodes_on_copies_and_says_so_once(name):
    make, reason = FALLBACKS[name]
    model = make()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plain, shared = both(model, *prompts())
        both(model, *prompts())
    told = [str(x.message) for x in caught if "keys and values" in str(x.message)]
    assert torch.equal(plain, shared) and len(told) == 1 and re.search(reason, told[0])
    assert list(record_of(model).failed) == [GROUPED] and REPEATED in record_of(model).verified


def test_keys_and_values_are_held_once():
    model, (ids, mask) = model_of("qwen3"), prompts()
    held = prefilled(model, ids, mask, GROUPED)
    assert {tuple(x.shape) for layer in held.layers for x in layer.prompts} == {(4, 2, 19, 4)}
    assert len(WHICH[held.rows].unique_consecutive()) == 4  # rows of one prompt are neighbours
    repeated = prefilled(model, ids, mask, REPEATED)
    assert {tuple(layer.keys.shape) for layer in repeated.cache.layers} == {(11, 2, 19, 4)}
    assert isinstance(repeated.cache, cache_utils.DynamicCache)


@pytest.mark.parametrize("trained", [True, False])
def test_weights_are_cast_once_under_autocast(trained):
    model, (ids, mask) = model_of("qwen3").requires_grad_(trained), prompts()
    weights, seen = dict(model.named_parameters()), []
    model.lm_head.register_forward_pre_hook(lambda module, _: seen.append(module.weight.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        plain, shared = both(model, ids, mask)
    assert seen[0] == torch.float32 and seen[-1] == torch.bfloat16
    assert not record_of(model).failed and all(x is weights[name] for name, x in model.named_parameters())
    assert plain.shape[0] == shared.shape[0]


def test_weights_that_were_cast_once_give_the_numbers_of_autocast():
    model, (ids, mask) = model_of("gemma3_text"), prompts()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        with pytest.raises(ZeroDivisionError), weights_cast_once(model):
            found = model(input_ids=ids, attention_mask=mask).logits
            raise ZeroDivisionError
    assert torch.equal(found, expected) and model.lm_head.weight is model.model.embed_tokens.weight
