"""Generation that is more than plain sampling, or somebody else's, is left as it is."""

from contextlib import nullcontext
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from calibrant.policy.decode import plain_sampling
from calibrant.policy.prefill import shared_prefill
from calibrant.policy.verify import record_of
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

IDS = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])[[0, 1, 0, 0, 1, 1]]
MASK = (IDS != 0).long()
BASE = dict(do_sample=True, max_new_tokens=6, pad_token_id=0, eos_token_id=1)
SETTINGS = {
    "static": {"cache_implementation": "static", "disable_compile": True},
    "sliding window": {"cache_implementation": "sliding_window", "disable_compile": True},
    "dynamic": {"cache_implementation": "dynamic"},
    "offloaded": {"cache_implementation": "offloaded"},
    "quantized": {"cache_implementation": "quantized"},
    "beams": {"num_beams": 2},
    "sequences": {"num_return_sequences": 2},
    "contrastive": {"do_sample": False, "penalty_alpha": 0.6, "top_k": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "guidance": {"guidance_scale": 1.5},
    "no cache": {"use_cache": False},
    "chunked prefill": {"prefill_chunk_size": 2},
    "dictionary": {"return_dict_in_generate": True, "output_scores": True},
}


def llama():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)).double().eval()


def written(model, **options):
    """What generation returns, or the type of what it raises."""
    torch.manual_seed(3)
    try:
        found = model.generate(input_ids=IDS, attention_mask=MASK, **options)
    except Exception as error:
        return type(error), str(error)
    return getattr(found, "sequences", found).tolist(), type(found)


@pytest.mark.parametrize("where", ["options", "configuration", "model"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_more_than_plain_sampling_is_left_as_it_is(name, where):
    model, settings = llama(), SETTINGS[name]
    options = BASE | settings
    if where == "configuration":
        options = {"generation_config": GenerationConfig(**options)}
    elif where == "model":
        options = BASE if "do_sample" not in settings else {k: v for k, v in BASE.items() if k != "do_sample"}
        for key, value in {"do_sample": True, **settings}.items():
            setattr(model.generation_config, key, value)
    plain = written(model, **options)
    assert plain_sampling(model, {"input_ids": IDS, "attention_mask": MASK, **options}) is None
    with shared_prefill(model, states=True) as decoded:
        assert written(model, **options) == plain
    assert decoded.ids is None and not record_of(model).failed and not record_of(model).verified


def test_hybrid_is_the_default_cache():
    model = llama()
    plain = written(model, **BASE)
    model.generation_config.cache_implementation = "hybrid"
    with shared_prefill(model, states=True) as decoded:
        assert written(model, **BASE) == plain
    assert decoded.ids is not None


def test_a_logits_processor_sees_the_same_logits():
    model, drawn = llama(), []

    def processor(ids, scores):
        drawn[-1] += [scores.double().logsumexp(-1)]
        return scores.index_fill(1, torch.tensor([3, 5, 7]), -torch.inf)

    for sharing in (False, True, True):  # the second compares both ways once
        drawn.append([])
        with shared_prefill(model) if sharing else nullcontext():
            drawn[-1].insert(0, written(model, **BASE, logits_processor=[processor]))
    assert drawn[0][0] == drawn[1][0] == drawn[2][0]
    assert record_of(model).verified and not record_of(model).failed
    torch.testing.assert_close(drawn[2][1], drawn[0][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", ["stopping_criteria", "streamer", "assistant_model", "unknown"])
def test_objects_beside_the_settings_are_left_to_generate(extra):
    model = llama()
    assert plain_sampling(model, {"input_ids": IDS, "attention_mask": MASK, **BASE, extra: None})
    assert not plain_sampling(model, {"input_ids": IDS, "attention_mask": MASK, **BASE, extra: Mock()})


class Harness:
    """Something of the user's that generates."""

    def __init__(self):
        self.calls = 0

    def generate(self, *arguments, **options):
        self.calls += 1
        return torch.cat([options["input_ids"], torch.full((len(options["input_ids"]), 2), 9)], dim=1)


def replaced(way):
    """A `generate` of the user's, and how often it was called."""
    harness = Harness()
    if way == "lambda":
        return (lambda *a, **k: harness.generate(*a, **k)), lambda: harness.calls
    if way == "partial":
        return partial(harness.generate, tool=1), lambda: harness.calls
    if way == "bound method":
        return harness.generate, lambda: harness.calls
    mock = Mock(side_effect=harness.generate)
    return mock, lambda: mock.call_count


def wrapped(kind):
    model = llama().float()
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")) if kind else model


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("way", ["lambda", "partial", "bound method", "mock"])
def test_a_generate_of_somebody_else_is_called_every_time_and_stays(way, adapter):
    model, (own, calls) = wrapped(adapter), replaced(way)
    model.generate = own
    for count in (1, 2):
        with shared_prefill(model):
            assert model.generate is own
            model.generate(input_ids=IDS, attention_mask=MASK)
        assert calls() == count and vars(model)["generate"] is own


def test_a_generate_inside_of_adapters_or_of_a_class_is_somebody_elses():
    model, (own, calls) = wrapped(True), replaced("lambda")
    model.get_base_model().generate = own
    with shared_prefill(model):
        assert "generate" not in vars(model)
        model.generate(input_ids=IDS, attention_mask=MASK)
    assert calls() == 1 and model.get_base_model().generate is own

    class Own(LlamaForCausalLM):
        def generate(self, *arguments, **options):
            return own(*arguments, **options)

    inherited = Own(llama().config)
    with shared_prefill(inherited):
        inherited.generate(input_ids=IDS, attention_mask=MASK)
    assert calls() == 2 and "generate" not in vars(inherited)


def test_a_generate_that_is_set_meanwhile_stays():
    model, (own, _) = llama(), replaced("lambda")
    with shared_prefill(model):
        model.generate = own
    assert model.generate is own


def test_adapters_share_and_are_left_as_they_were():
    model = wrapped(True).eval()
    plain = written(model, **BASE)
    with shared_prefill(model, states=True) as decoded:
        assert written(model, **BASE) == plain
    assert decoded.ids is not None and "generate" not in vars(model)


def test_a_failure_of_sharing_ends_nothing(monkeypatch):
    model = llama()
    plain = written(model, **BASE)
    monkeypatch.setattr("calibrant.policy.prefill.prefilled", Mock(side_effect=ZeroDivisionError("no")))
    with (
        shared_prefill(model),
        pytest.warns(UserWarning, match="LlamaForCausalLM does not share.*ZeroDivisionError: no"),
    ):
        assert written(model, **BASE) == plain
    monkeypatch.undo()
    with shared_prefill(model, states=True) as decoded:
        assert written(model, **BASE) == plain
    assert decoded.ids is None  # and never again


@pytest.mark.parametrize("changes", [{"cache_implementation": "static"}, {"generation_kwargs": {"num_beams": 2}}])
def test_a_trainer_with_other_settings(policy, questions, tmp_path, changes):
    args = CalibratedGRPOConfig(
        str(tmp_path), method="grpo", per_device_train_batch_size=4, num_generations=4, max_completion_length=4,
        max_steps=1, report_to="none", use_cpu=True, bf16=False, rollouts_dir="", **changes,
    )  # fmt: skip
    trainer = CalibratedGRPOTrainer(
        policy, lambda completions, **_: [float(len(x)) for x in completions], args, questions
    )
    trainer.train()
    assert "generation" not in record_of(trainer.model).verified
