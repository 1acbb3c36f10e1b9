"""Configurations of the kinds that TRL tests its trainer with: two steps of TRL's trainer and of ours agree."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import like_trl as x
import pytest
import torch
from image_models import FAMILIES
from trl import GRPOConfig, GRPOTrainer

from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

TIMES = ("runtime", "per_second", "step_time", "flos")


@dataclass
class Case:
    """What differs from the smallest run.

    Attributes:
        config: options of the configuration.
        model: a model, or what makes one.
        rewards: reward functions.
        data: what makes the data set.
        given: what makes further arguments of the trainer.
        during: trainer -> context in which it trains.
        often: whether it is run each time, not among the slow ones alone.
    """

    config: dict[str, Any] = field(default_factory=dict)
    model: Any = x.POLICY
    rewards: Any = x.length
    data: Any = x.texts
    given: Any = dict
    during: Any = nullcontext
    often: bool = False


def case(**keywords: Any) -> Case:
    named = {name: keywords.pop(name) for name in list(keywords) if name in Case.__dataclass_fields__}
    return Case(config=keywords, **named)


PASSES = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")
LONG = {"max_completion_length": 200, "model": None, "data": x.chats, "rewards": x.letters}
CASES = {
    "all at once": case(beta=0.1, num_iterations=2, often=True, rewards=[x.length, x.sometimes, x.waiting, x.logging],
                        reward_weights=[1.0, 0.5, 0.2, 0.1], use_bias_correction_kl=True, delta=2.0, **PASSES),
    **{f"loss {kind}": case(loss_type=kind, **PASSES) for kind in LOSSES},
    "bias correction": case(beta=0.1, use_bias_correction_kl=True),
    "delta": case(delta=2.0, num_iterations=2),
    "synchronised reference": case(beta=0.1, sync_ref_model=True, ref_model_sync_steps=1, often=True),
    "sequences": case(importance_sampling_level="sequence", num_iterations=2),
    "high entropies": case(top_entropy_quantile=0.2),
    "entropy bonus": case(entropy_coef=0.1, **PASSES),
    "adaptive entropy": case(use_adaptive_entropy=True, entropy_target=1.0, **PASSES),
    "off policy": case(off_policy_mask_threshold=0.1, steps_per_generation=2),
    "padding": case(pad_to_multiple_of=8),
    "head in float32": case(cast_lm_head_to_fp32=True, model=x.untied),
    "tied head in float32": case(cast_lm_head_to_fp32=True),
    **{f"scale {kind}": case(scale_rewards=kind) for kind in (False, "group", "batch", True, "none")},
    "normalize then sum": case(multi_objective_aggregation="normalize_then_sum", rewards=[x.length, x.letters]),
    "mixture of experts": case(model=x.mixture, often=True, given=x.reads),
    "mixture without its loss": case(model=partial(x.mixture, 0.0), given=x.reads),
    # passes
    "many generations": case(num_generations=8, **PASSES),
    "odd windows": case(gradient_accumulation_steps=3, steps_per_generation=4, per_device_train_batch_size=2,
                        num_iterations=2, shuffle_dataset=False, often=True),
    "generations ahead": case(steps_per_generation=4, per_device_train_batch_size=4, max_steps=4),
    "workers": case(dataloader_num_workers=2),
    "checkpointing": case(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}),
    "reentrant": case(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}),
    "a stream": case(data=lambda: x.texts().to_iterable_dataset(), often=True),
    "evaluations": case(eval_strategy="steps", eval_steps=1, num_generations_eval=1, per_device_eval_batch_size=4,
                        eval_on_start=True, loss_type="grpo", given=lambda: {"eval_dataset": x.texts(4)}, often=True),
    "several evaluations": case(eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=8,
                                given=lambda: {"eval_dataset": {"a": x.texts(4), "b": x.chats(4)},
                                               "processing_class": x.tokenizer()}),
    "completions": case(log_completions=True, num_completions_to_print=1, rewards=x.logging),
    # adapters
    "peft": case(given=lambda: {"peft_config": x.adapter()}),
    "peft with a reference": case(beta=0.1, given=lambda: {"peft_config": x.adapter()}, **PASSES),
    "peft model": case(model=x.adapted, beta=0.1),
    "peft with checkpoints": case(gradient_checkpointing=True, given=lambda: {"peft_config": x.adapter()}),
    "peft and saved modules": case(given=lambda: {"peft_config": x.adapter(modules_to_save=["lm_head"])}),
    # rewards
    "reward model": case(rewards=x.judge, given=lambda: {"reward_processing_classes": x.tokenizer()}),
    "reward models and functions": case(
        rewards=lambda: [x.judge(0), x.length, x.judge(1)], reward_weights=[1.0, 0.5, -1.0], often=True,
        given=lambda: {"reward_processing_classes": [x.tokenizer(), None, x.tokenizer()]}),
    "reward model of chats": case(
        rewards=x.judge, data=x.chats,
        given=lambda: {"processing_class": x.tokenizer(), "reward_processing_classes": [x.tokenizer()]}),
    "unknown rewards": case(rewards=[x.length, x.unknown]),
    "all rewards unknown": case(rewards=x.unknown),
    "columns": case(rewards=x.of_column),
    # generation
    "sampling": case(top_p=0.9, top_k=10, min_p=0.01, repetition_penalty=1.1),
    "beams": case(generation_kwargs={"num_beams": 2, "length_penalty": -0.1}),
    "greedy": case(generation_kwargs={"do_sample": False}, temperature=1.0),
    **{f"cache {kind}": case(cache_implementation=kind) for kind in ("static", "dynamic")},
    "beams of the model": case(model=partial(x.scaled, "num_beams", 2)),
    "chat template": case(data=x.chats, chat_template_kwargs={"shout": True},
                          given=lambda: {"processing_class": x.tokenizer()}),
    "truncated masked": case(mask_truncated_completions=True, often=True,
                             during=x.with_mock("transformers.generation.utils.GenerationMixin.generate", x.fixed)),
    "all masked": case(mask_truncated_completions=True, max_completion_length=2),
    "their own rollouts": case(rewards=x.of_field, given=lambda: {"rollout_func": x.rollout}, often=True),
    **{f"tool {tool.__name__}, {turns} turns": case(
        **LONG, given=x.talks(tools=[tool]), often=turns == 2, max_tool_calling_iterations=turns,
        during=x.on(["model"], "generate", lambda *_, tool=tool, turns=turns: partial(x.calling, tool.__name__, turns)))
       for tool, turns in ((x.multiply, 1), (x.multiply_later, 2))},
    "environment": case(**LONG | {"max_completion_length": 8},
                        given=x.talks(environment_factory=x.Board)),
    # images
    **{f"images {family}": case(model=None, data=x.pictures, given=x.sees(family)) for family in FAMILIES},
    "several images": case(model=None, data=lambda: x.pictures(2), given=x.sees("qwen2_5_vl"), **PASSES),
    "images here and there": case(model=None, data=lambda: x.pictures(1, 2), given=x.sees("qwen2_vl"), often=True),
    "images and importance": case(model=None, data=x.pictures, given=x.sees("qwen2_5_vl"), steps_per_generation=2,
                                  per_device_train_batch_size=4),
    # parts of the trainer that are replaced or read
    "a model in memory": case(model=x.loaded, model_init_kwargs=None),
    "a callback": case(during=x.reading, often=True, **PASSES),
    "generate replaced": case(during=x.on(["model"], "generate", lambda *_: x.fixed)),
    "a single turn replaced": case(during=x.on([], "_generate_single_turn", lambda *_: x.turn)),
    "generation watched": case(during=x.on([], "_generate", lambda _, own: lambda prompts: own(prompts))),
    "rewards replaced": case(
        during=x.on([], "_calculate_rewards", lambda *_: lambda inputs, *__: torch.arange(8.0)[:, None] % 3)),
}  # fmt: skip


def trained(kind, folder, case, **training):
    """A trainer after two steps, its parameters before, and what it logged."""
    common = dict(
        max_steps=2, num_generations=4, per_device_train_batch_size=8, max_completion_length=8, learning_rate=0.01,
        logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False,
        gradient_checkpointing=False, optim="sgd", seed=3, beta=0.0, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    own = {"method": "grpo"} if kind is CalibratedGRPOTrainer else {}
    config = CalibratedGRPOConfig if own else GRPOConfig
    torch.manual_seed(0)
    given = case.given()
    model = given.pop("model", None) or (case.model() if callable(case.model) else case.model)
    changes = common | ({} if isinstance(model, str) else {"model_init_kwargs": None}) | case.config
    rewards = case.rewards() if getattr(case.rewards, "__name__", "") in ("judge", "<lambda>") else case.rewards
    trainer = kind(model, rewards, config(output_dir=str(folder), **changes, **own), case.data(), **given)
    before = parameters(trainer)
    with case.during(trainer):
        trainer.train(**training)
    logged = [
        {name: value for name, value in row.items() if not name.endswith(TIMES)} for row in trainer.state.log_history
    ]
    return trainer, before, logged


def parameters(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def assert_alike(folder, case, moves=True):
    theirs, before, expected = trained(GRPOTrainer, folder / "a", case)
    ours, _, logged = trained(CalibratedGRPOTrainer, folder / "b", case)
    assert len(logged) == len(expected)
    for row, wanted in zip(logged, expected, strict=True):
        for metric, value in wanted.items():
            near = value if value is None else pytest.approx(value, rel=1e-3, abs=1e-3)
            assert row[metric] == near, metric
    after, found = parameters(theirs), parameters(ours)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in found.items() if not torch.equal(value, before[name])}
    for name, value in after.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert bool(moved) == moves


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if one.often else pytest.mark.slow) for name, one in CASES.items()]
)
def test_two_steps_are_those_of_trl(tmp_path, name):
    assert_alike(tmp_path, CASES[name], moves=name not in ("all masked", "all rewards unknown", "greedy"))


def test_a_stand_in_for_vllm(tmp_path, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", x.Engine)
    assert_alike(tmp_path, case(use_vllm=True, vllm_mode="colocate", **PASSES))


def test_private_methods_called_by_hand(tmp_path):
    """As by TRL's own tests: with inputs that are not those of a training step."""
    found = []
    for kind, config in ((GRPOTrainer, GRPOConfig), (CalibratedGRPOTrainer, CalibratedGRPOConfig)):
        args = config(str(tmp_path), use_cpu=True, bf16=False, report_to="none", model_init_kwargs={"dtype": "float32"})
        trainer = kind(x.POLICY, x.letters, args, x.texts(), processing_class=x.tokenizer())
        trainer.current_gradient_accumulation_steps = 1
        ids, mask = torch.arange(100, 120).view(2, 10).repeat(2, 1), torch.ones(4, 10, dtype=torch.long)
        inputs = {"prompt_ids": ids[:, :6], "prompt_mask": mask[:, :6], "completion_ids": ids[:, 6:]}
        inputs |= {"completion_mask": mask[:, 6:], "advantages": torch.tensor([1.0, -1.0, 0.0, 0.5])}
        inputs |= {"num_items_in_batch": torch.tensor(16)}
        torch.manual_seed(0)
        generated = trainer._generate(["a", "b"] * 2)
        rewards = trainer._calculate_rewards([{}] * 2, ["p"] * 2, ["ab", "c"], [[5], [6]])
        rows = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 4, compute_entropy=True)
        losses = []
        for training in (True, False):
            trainer.model.train(training)
            losses.append(trainer._compute_loss(trainer.model, inputs))
        losses[0].backward()
        largest = torch.stack([p.grad.abs().max() for p in trainer.model.parameters()])
        tokens = trainer._tokenize_prompts(["a", "b"]), generated[:2]
        found.append((tokens, [rewards, *rows[:2], *losses, largest]))
    (texts, tensors), (own_texts, own) = found
    assert own_texts == texts
    torch.testing.assert_close(own, tensors, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_resumed_runs_end_as_those_of_trl(tmp_path):
    ends = []
    for kind, folder in ((GRPOTrainer, "a"), (CalibratedGRPOTrainer, "b")):
        one = case(save_strategy="steps", save_steps=1, optim="adamw_torch", learning_rate=1e-5)
        whole = trained(kind, tmp_path / folder, one)[0]
        first = str(tmp_path / folder / "checkpoint-1")
        resumed = trained(kind, tmp_path / folder, one, resume_from_checkpoint=first)[0]
        assert all(torch.equal(value, parameters(whole)[name]) for name, value in parameters(resumed).items())
        ends.append(parameters(resumed))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)
