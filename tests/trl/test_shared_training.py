"""Training with prompts computed once for their group: TRL's gradient, features and all, up to rounding."""

import pytest
import torch
from peft import LoraConfig
from test_trainer import CalibratedGRPOConfig, arguments, f1_reward, losses, some_slow, train, vowels
from trl import GRPOConfig, GRPOTrainer

from calibrant.policy.routes import PASSES
from calibrant.policy.verify import record_of
from calibrant.trl import CalibratedGRPOTrainer, shared_prompts

FEATURES = {
    "as it is": {},
    "ten steps of AdamW": {"max_steps": 10, "optim": "adamw_torch", "learning_rate": 1e-4},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "several updates": {"num_iterations": 2, "max_steps": 4},
    "no reference": {"beta": 0.0},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "batch scale": {"scale_rewards": "batch"},
    "no scale": {"scale_rewards": "none"},
    "truncated masked": {"mask_truncated_completions": True, "max_completion_length": 4},
    "high entropy tokens": {"top_entropy_quantile": 0.8},
    "sequence level": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    **{f"loss {kind}": {"loss_type": kind} for kind in ("grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo")},
}
OFTEN = ("ten steps of AdamW", "several updates", "gradient checkpointing", "truncated masked", "loss grpo")
# Plain gradient descent: AdamW blows the rounding of gradients that are nearly 0 up to whole steps.
EXACT = {"bf16": False, "model_init_kwargs": {"dtype": "float32"}, "optim": "sgd", "learning_rate": 0.01}


def parameters(trainer):
    return torch.cat([x.flatten().double() for x in trainer.model.state_dict().values()])


@pytest.mark.parametrize("feature", some_slow(FEATURES, often=OFTEN))
def test_a_feature_of_trl_gives_trls_parameters(policy, questions, tmp_path, feature):
    changes = EXACT | FEATURES[feature]
    theirs = train(policy, questions, arguments(tmp_path / "a", GRPOConfig, **changes), kind=GRPOTrainer)
    ours = train(policy, questions, arguments(tmp_path / "b", method="grpo", **changes))
    assert losses(ours) == pytest.approx(losses(theirs), abs=2e-5)
    bound = 1e-5 if changes["optim"] == "sgd" else changes["learning_rate"]  # one step of AdamW of ten
    assert (parameters(ours) - parameters(theirs)).abs().max() < bound


@pytest.mark.parametrize(
    ("beta", "trained"),
    some_slow([(0.01, None), (0.0, None), (0.0, ["embed_tokens"]), (0.01, ["embed_tokens"])], often=1),
)
def test_adapters_are_trained_as_by_trl(policy, questions, tmp_path, beta, trained):
    changes = EXACT | {"beta": beta, "max_steps": 3}
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=trained, task_type="CAUSAL_LM")
    found = []
    for folder, kind, args in (("a", GRPOTrainer, GRPOConfig), ("b", CalibratedGRPOTrainer, CalibratedGRPOConfig)):
        own = {} if kind is GRPOTrainer else {"method": "grpo"}
        torch.manual_seed(0)  # adapters begin at random
        found.append(
            train(
                policy, questions, arguments(tmp_path / folder, args, **changes, **own), kind=kind, peft_config=config
            )
        )
    theirs, ours = found
    assert losses(ours) == pytest.approx(losses(theirs), abs=2e-5)
    assert (parameters(ours) - parameters(theirs)).abs().max() < 1e-5
    assert any("lora" in name for name in ours.model.state_dict())
    assert ours._sharing  # and not by falling back


def test_several_rewards_with_weights(policy, questions, tmp_path):
    changes = EXACT | {"reward_weights": [1.0, 0.5]}
    theirs = train(
        policy, questions, arguments(tmp_path / "a", GRPOConfig, **changes), [f1_reward, vowels], kind=GRPOTrainer
    )
    ours = train(policy, questions, arguments(tmp_path / "b", method="grpo", **changes), [f1_reward, vowels])
    assert (parameters(ours) - parameters(theirs)).abs().max() < 1e-5


def test_prompts_are_computed_once(policy, questions, tmp_path, monkeypatch):
    """The policy sees each prompt once a pass, not once a rollout; the first pass compares a few rows beside that."""
    passes, original = [], shared_prompts.logps_in_chunks

    def counting(model, *tensors, **options):
        inner = trainer.accelerator.unwrap_model(trainer.model).get_input_embeddings()
        seen = []
        handle = inner.register_forward_hook(lambda _m, ids, _o: seen.append(ids[0].numel()))
        try:
            return original(model, *tensors, **options)
        finally:
            handle.remove()
            passes.append((sum(seen), tensors[0].numel()))

    monkeypatch.setattr(shared_prompts, "logps_in_chunks", counting)
    args = arguments(tmp_path, method="grpo", max_steps=2, beta=0.01)
    trainer = CalibratedGRPOTrainer(policy, f1_reward, args, questions)
    trainer.train()
    computed, plain = passes[-1]
    assert 0 < computed < 0.6 * plain


def test_sharing_can_be_switched_off(policy, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_prompts, "logps_in_chunks", lambda *_, **__: pytest.fail("it was switched off"))
    train(policy, questions, arguments(tmp_path, CalibratedGRPOConfig, method="grpo", share_prefix=False, max_steps=1))


def test_a_model_that_cannot_share_is_trained_as_by_trl(policy, questions, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("its cache is something else")

    changes = EXACT | {"beta": 0.0}  # a reference is another model, with a warning of its own
    theirs = train(policy, questions, arguments(tmp_path / "a", GRPOConfig, **changes), kind=GRPOTrainer)
    monkeypatch.setattr("calibrant.policy.prefill.prefilled", refuse)
    monkeypatch.setattr("calibrant.policy.cached.cached_states", refuse)
    for route in ("packed", "flat"):
        monkeypatch.setitem(PASSES, route, refuse)
    with pytest.warns(UserWarning, match="does not share prompts.*: its cache is something else") as said:
        ours = train(policy, questions, arguments(tmp_path / "b", method="grpo", **changes))
    assert sum("does not share prompts" in str(each.message) for each in said) == 1
    assert (parameters(ours) - parameters(theirs)).abs().max() < 1e-5


@pytest.mark.parametrize("adapter", [False, True])
def test_generation_computes_in_the_type_of_training(policy, questions, tmp_path, adapter):
    """The linear layers inside of adapters too, which TRL's own generation leaves in float32; none is cast twice."""
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if adapter else None
    changes = EXACT | {"bf16": True, "max_steps": 1}
    args = arguments(tmp_path, method="grpo", **changes)
    trainer = CalibratedGRPOTrainer(policy, f1_reward, args, questions, peft_config=config)
    seen, head = [], trainer.model.get_output_embeddings()
    head.register_forward_hook(lambda module, _, logits: seen.append((module.weight.dtype, logits.dtype)))
    trainer.train()
    assert (torch.bfloat16, torch.bfloat16) in seen and head.weight.dtype == torch.float32
    assert not record_of(trainer.model).failed
