"""Generation by vLLM, up to the engine: a stand-in answers in its place, and gets the weights that TRL sends."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from test_policy_inputs import Keeping, plain_forward, rows_of
from test_trainer import arguments, train
from vllm_stand_in import install

from calibrant.tasks.places import TASK
from calibrant.trl.policy_inputs import PolicyInputs

FUNCTIONS = dict(is_correct=TASK.correct, extract_answer=TASK.extract)


def trained(policy, questions, folder, method, mode="colocate", kind=Keeping, lora=False, **changes):
    Keeping.batches.clear()
    options = dict(temperature=0.7, bf16=False, model_init_kwargs={"dtype": "float32"}, use_vllm=True, vllm_mode=mode)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    args = arguments(folder, method=method, **(options | changes))
    return train(policy, questions, args, kind=kind, peft_config=config, **FUNCTIONS)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_likelihoods_are_those_of_the_policy_and_the_engine_gets_its_weights(
    policy, questions, tmp_path, monkeypatch, mode, lora
):
    engines = install(monkeypatch, policy)
    method, rate = "test_policy_inputs.everything", 1e-2 if lora else 1e-3
    trainer = trained(policy, questions, tmp_path, method, mode, lora=lora, beta=0.0, learning_rate=rate)
    expected = np.array(list(plain_forward(policy, Keeping.batches[0], 0.7)))
    first = rows_of(tmp_path)
    np.testing.assert_allclose(first.logprob, expected[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first.token_entropy, expected[:, 1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first.ref_logprob, expected[:, 0], rtol=1e-4, atol=1e-4)
    ratios = [row["sampling/importance_sampling_ratio/mean"] for row in trainer.state.log_history[:-1]]
    assert ratios == pytest.approx([1.0, 1.0], abs=1e-3)  # of the engine that has the weights of each step
    (engine,) = engines
    assert engine.syncs == 2
    with torch.no_grad():
        trainer.vllm_generation.sync_weights()
        ids = torch.arange(5, 25)[None]
        torch.testing.assert_close(engine.model(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["grpo", "gcpo_bot", "seed_grpo", "edge_grpo", "capo", "grpo_care", "gcpo_grad"])
def test_every_kind_of_method_trains(policy, questions, tmp_path, monkeypatch, method):
    install(monkeypatch, policy)
    changes = dict(max_steps=1, beta=0.0, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trained(policy, questions, tmp_path, method, **changes)
    assert np.isfinite(rows_of(tmp_path).advantage).all()


def test_log_probabilities_that_trl_has_computed_are_not_computed_again(policy, questions, tmp_path, monkeypatch):
    install(monkeypatch, policy)
    monkeypatch.setattr(PolicyInputs, "_per_token", lambda *_: pytest.fail("TRL has them, to correct vLLM's"))
    trained(policy, questions, tmp_path, "seed_grpo", max_steps=1)
    assert rows_of(tmp_path).logprob.lt(0).all()
