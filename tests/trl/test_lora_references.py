"""References with an adapter: the base with the adapter switched off, the adapter as it was, its moving average."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_policy_inputs import TOKENS, Keeping, plain_forward, rows_of
from test_trainer import arguments, train
from transformers import AutoModelForCausalLM

from calibrant.errors import CalibrantError
from calibrant.policy.references import InitialReference, SlowReference
from calibrant.tasks.places import TASK

FUNCTIONS = dict(is_correct=TASK.correct, extract_answer=TASK.extract)


def adapter(**options):
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)


def adapted(policy, **options):
    return get_peft_model(AutoModelForCausalLM.from_pretrained(policy).float(), adapter(**options))


def trained(policy, questions, folder, model=None, **changes):
    Keeping.batches.clear()
    options = dict(temperature=0.7, bf16=False, learning_rate=1e-2, model_init_kwargs={"dtype": "float32"})
    args = arguments(folder, method="test_policy_inputs.everything", **(options | changes))
    config = {} if model else {"peft_config": adapter()}
    return train(model or policy, questions, args, kind=Keeping, **config, **FUNCTIONS)


@pytest.mark.parametrize(("beta", "share"), [(0.0, True), (0.01, True), (0.0, False)])
def test_the_reference_of_a_new_adapter_is_the_base(policy, questions, tmp_path, beta, share):
    trainer = trained(policy, questions, tmp_path, beta=beta, share_prefix=share)
    for step in (1, 2):
        rows, base = rows_of(tmp_path, step), np.array(list(plain_forward(policy, Keeping.batches[step - 1], 0.7)))
        np.testing.assert_allclose(rows.ref_logprob, base[:, 0], rtol=1e-4, atol=1e-4)
    assert (rows.logprob - rows.ref_logprob).abs().max() > 1e-2  # the adapter has moved
    inputs, own = trainer._policy_inputs, sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert trainer.ref_model is None and (beta or (inputs.initial.is_base and not inputs.initial.snapshot))
    assert sum(value.numel() for value in inputs.slow.average.values()) == own
    held = [value for value in vars(inputs).values() if isinstance(value, torch.nn.Module)]
    assert not held and all("lora" in name for name in inputs.slow.average)


def test_the_reference_of_a_trained_adapter_is_that_adapter(policy, questions, tmp_path):
    model, first = adapted(policy, init_lora_weights=False), adapted(policy)
    first.load_state_dict(model.state_dict())
    trained(policy, questions, tmp_path, model, beta=0.0)
    for step in (1, 2):
        batch = Keeping.batches[step - 1]
        expected = [summed(first, *row, 0.7) for row in zip(*(batch[name] for name in TOKENS), strict=True)]
        np.testing.assert_allclose(rows_of(tmp_path, step).ref_logprob, expected, rtol=1e-4, atol=1e-4)


def summed(model, prompt, prompt_mask, completion, mask, temperature):
    prompt, completion = prompt[prompt_mask.bool()], completion[mask.bool()]
    with torch.no_grad():
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1)[torch.arange(len(completion)), completion].sum().item()


@pytest.mark.parametrize("kind", ["new", "trained", "whole", "half"])
def test_a_reference_takes_the_place_of_the_policy_and_gives_it_back(policy, kind):
    if kind in ("whole", "half"):
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16 if kind == "half" else torch.float32)
    else:
        model = adapted(policy, init_lora_weights=kind == "new", lora_dropout=0.5)
    ids = torch.arange(5, 15)[None]
    initial, slow = InitialReference(model), SlowReference(model, decay=0.25, every=1)
    with torch.no_grad():
        before = model.eval()(ids).logits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        moved = model(ids).logits
    model.train()
    slow.follow(model, 1)
    with torch.no_grad():
        with initial.in_place(model):
            assert torch.equal(model(ids).logits, before)
        with slow.in_place(model):
            between = model(ids).logits
        assert model.training and torch.equal(model.eval()(ids).logits, moved)
    assert not torch.equal(between, before) and not torch.equal(between, moved)


@pytest.mark.parametrize("half", [False, True])
def test_a_reference_under_autocast_reads_its_own_values(policy, half):
    """Autocast remembers casts of weights within a context, which the swapped values must not find."""
    model, ids = AutoModelForCausalLM.from_pretrained(policy).float().eval(), torch.arange(5, 15)[None]
    initial = InitialReference(model)
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        before = model(ids).logits.detach()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05)
        torch.clear_autocast_cache()
        moved = model(ids).logits.detach()
        with initial.in_place(model), torch.no_grad():
            assert torch.equal(model(ids).logits, before)
        assert torch.equal(model(ids).logits, moved)


def test_a_sharded_policy_has_no_reference_but_the_base_of_an_adapter(policy):
    model = adapted(policy)
    for parameter in model.parameters():
        parameter.ds_id = 1
    assert InitialReference(model, "ZeRO-3").is_base
    with pytest.raises(CalibrantError, match="ZeRO-3 or the first version of FSDP shards"):
        SlowReference(model)
    whole = AutoModelForCausalLM.from_pretrained(policy)
    for sharding in ("FSDP1", "ZeRO-3"):
        with pytest.raises(CalibrantError, match="train with DDP, ZeRO-2 or fsdp_version: 2"):
            InitialReference(whole, sharding)
    assert not InitialReference(whole, "FSDP2").snapshot and not SlowReference(whole, sharding="FSDP2").average
