"""The trainer's `head_gram`: against gradients built one by one, across processes, and where it cannot be."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from test_policy_inputs import TOKENS, Keeping, rows_of
from test_trainer import arguments, f1_reward, launch, same_bits, train
from torch import nn
from transformers import AutoModelForCausalLM

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS
from calibrant.policy import cached, packed
from calibrant.policy.decode import Decoded
from calibrant.trl import CalibratedGRPOTrainer, head_gradients
from calibrant.trl.head_gradients import readable_head


def reading(rewards, head_gram, where):
    """Reads the matrices and does as Dr. GRPO does."""
    return METHODS["dr_grpo"](rewards, where)


class Seeing(Keeping):
    """Keeps the matrices beside the tokens."""

    seen: ClassVar[list] = []

    def _log_scores(self, mode, scored, advantages):
        self.seen.append(scored.groups.inputs["head_gram"])


@pytest.fixture(autouse=True)
def nothing_seen():
    Seeing.seen.clear()
    Seeing.batches.clear()


def gradients_by_hand(policy, batch, temperature):
    """`sum_t (onehot(y_t) - p_t) h_t^T / temperature` of each completion: one row at a time, without padding."""
    model = AutoModelForCausalLM.from_pretrained(policy).float()
    for prompt, prompt_mask, own, mask in zip(*(batch[k] for k in TOKENS), strict=True):
        prompt, own = prompt[prompt_mask.bool()], own[mask.bool()]
        with torch.no_grad():
            states = model.model(torch.cat([prompt, own])[None]).last_hidden_state[0, len(prompt) - 1 : -1]
            logits = (states @ model.lm_head.weight.T) / temperature
        residual = nn.functional.one_hot(own, logits.shape[-1]) - logits.softmax(-1)
        yield (residual.double().T @ states.double() / temperature).flatten()


def trained(policy, questions, folder, **changes):
    options = dict(beta=0.0, temperature=0.7, max_steps=1, bf16=False, model_init_kwargs={"dtype": "float32"})
    args = arguments(folder, method="test_head_gram_in_training.reading", **(options | changes))
    train(policy, questions, args, kind=Seeing)
    return Seeing.seen.pop(0)


@pytest.mark.parametrize("changes", [{}, {"share_prefix": False}, {"gradient_accumulation_steps": 4}])
def test_inner_products_are_those_of_gradients_built_one_by_one(policy, questions, tmp_path, changes):
    rows = 8 // changes.get("gradient_accumulation_steps", 1)
    found = trained(policy, questions, tmp_path, per_device_train_batch_size=rows, **changes)
    gradients = torch.stack(list(gradients_by_hand(policy, Seeing.batches[0], 0.7))).view(2, 4, -1)
    expected = gradients @ gradients.mT
    scale = expected.diagonal(dim1=-2, dim2=-1).amax()
    assert found.dtype == torch.float64 and expected.std() > 0.05 * scale
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale.item())


def test_the_most_probable_columns_are_near_all_of_them(policy, questions, tmp_path, monkeypatch):
    every = trained(policy, questions, tmp_path / "a")
    few = trained(policy, questions, tmp_path / "b", head_gram_top=16)
    norms = every.diagonal(dim1=-2, dim2=-1).sqrt()
    error = (few - every).abs() / (norms[:, :, None] * norms[:, None, :])
    assert 0 < error.max() < 0.01
    monkeypatch.setattr(head_gradients, "EXACT_VOCABULARY", 1000)  # the policy has 1,024
    monkeypatch.setattr(head_gradients, "TOP", 16)
    assert torch.equal(trained(policy, questions, tmp_path / "c"), few)
    assert torch.equal(trained(policy, questions, tmp_path / "d", head_gram_top=0), every)


def test_reading_gradients_leaves_training_alone(policy, questions, tmp_path):
    plain = train(policy, questions, arguments(tmp_path / "a", method="dr_grpo", beta=0.0))
    args = arguments(tmp_path / "b", method="test_head_gram_in_training.reading", beta=0.0)
    assert same_bits(plain, train(policy, questions, args, kind=Seeing))
    assert [x.shape for x in Seeing.seen] == [(2, 4, 4)] * 2


def test_what_was_read_while_sampling_is_not_computed_again(policy, questions, tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(head_gradients, "logps_in_chunks", passes.append)
    first = trained(policy, questions, tmp_path / "a")
    assert not passes
    monkeypatch.undo()
    monkeypatch.setattr(Decoded, "states_of", lambda *_: None)
    again = trained(policy, questions, tmp_path / "b")
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-4 * first.abs().max().item())


def test_a_model_that_cannot_share_prompts_is_read_plainly(policy, questions, tmp_path, monkeypatch):
    expected = trained(policy, questions, tmp_path / "a")
    monkeypatch.setattr(Decoded, "states_of", lambda *_: None)
    monkeypatch.setattr(cached, "REPEATABLE", ())
    monkeypatch.setattr(packed, "packed_refusal", lambda _: "is not packed here")
    with pytest.warns(UserWarning, match="does not share prompts"):
        found = trained(policy, questions, tmp_path / "b", max_steps=2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_tokens_of_tools_do_not_count(policy, questions, tmp_path):
    trainer = CalibratedGRPOTrainer(
        policy, f1_reward, arguments(tmp_path, method="gradient_snr", beta=0.0), questions.select(range(8))
    )
    prompt = torch.tensor([[5, 6, 7]]).expand(4, 3)
    output = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt)}
    output |= {"completion_ids": torch.arange(8, 24).view(4, 4), "completion_mask": torch.ones(4, 4).long()}
    whole = trainer._policy_inputs(trainer.model, output, [""] * 4, 4)["head_gram"]
    output["tool_mask"] = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    some = trainer._policy_inputs(trainer.model, output, [""] * 4, 4)["head_gram"]
    assert (some[2] == 0).all() and (some[:, 2] == 0).all() and some[1, 1] != whole[1, 1]
    torch.testing.assert_close(some[0, 3], whole[0, 3])


def test_weights_of_training_are_those_of_the_method(policy, questions, tmp_path):
    trained_rows = []

    class Recording(CalibratedGRPOTrainer):
        def _log_scores(self, mode, scored, advantages):
            groups = scored.groups
            trained_rows.append(METHODS["gradient_snr"](groups.rewards, groups.inputs["head_gram"], None))

    args = arguments(tmp_path, method="gradient_snr", num_generations=8, per_device_train_batch_size=16, max_steps=2)
    train(policy, questions, args, kind=Recording)
    for step, outcome in enumerate(trained_rows, start=1):
        rows = rows_of(tmp_path, step)
        np.testing.assert_allclose(rows.weight, outcome.weights.flatten(), rtol=1e-6)
        assert rows.signal_share.between(0, 1).all() and (rows.head_variance >= 0).all()
        np.testing.assert_allclose(rows.advantage, rows.advantage_base * rows.weight, rtol=1e-5, atol=3e-3)


@pytest.mark.slow
def test_a_group_that_straddles_two_processes_is_read_whole(tmp_path):
    """Groups of 4, 6 rows a process; in bfloat16, where padding moves the third digit."""
    one, two = (
        launch(tmp_path / "one", 1, 12, method="gradient_snr"),
        launch(tmp_path / "two", 2, 6, method="gradient_snr"),
    )
    np.testing.assert_allclose(one.weight, two.weight, rtol=0, atol=1e-2)
    np.testing.assert_allclose(one.head_variance, two.head_variance, rtol=3e-3)
    assert one.head_variance.nunique() == 3
    names = ("one/trained-0", "two/trained-0", "two/trained-1")
    alone, *halves = (json.loads((tmp_path / f"{name}.json").read_text()) for name in names)
    np.testing.assert_allclose(np.concatenate(halves), alone, rtol=0, atol=1e-2)


def test_an_evaluation_with_other_groups(policy, questions, tmp_path):
    args = arguments(tmp_path, method="gradient_snr", per_device_eval_batch_size=4, num_generations_eval=2, beta=0.0)
    trainer = CalibratedGRPOTrainer(policy, f1_reward, args, questions, eval_dataset=questions.select(range(2)))
    assert 0 <= trainer.evaluate()["eval_group/weight/mean"] <= 1


def test_images_are_refused(policy, questions, tmp_path):
    trainer = CalibratedGRPOTrainer(policy, f1_reward, arguments(tmp_path, method="gcpo_grad"), questions)
    mask = torch.ones(4, 2)
    with pytest.raises(CalibrantError, match="not computed for prompts with images"):
        trainer._policy_inputs.head(trainer.model, {"completion_ids": mask, "pixel_values": mask}, mask, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cast_lm_head_to_fp32": True}, "that of Qwen2ForCausalLM is cast to float32"),
        ({"head_gram_top": -1}, "'head_gram_top' is -1; it must be 0 or a positive number"),
    ],
)
def test_options_that_do_not_go_with_it(policy, questions, tmp_path, changes, said):
    with pytest.raises(CalibrantError, match=said):
        CalibratedGRPOTrainer(policy, f1_reward, arguments(tmp_path, method="gcpo_grad", **changes), questions)


class Adapted(nn.Module):
    """A head with an adapter, as PEFT wraps it."""

    def __init__(self, inner):
        super().__init__()
        self.base_layer, self.weight = inner, inner.weight


def test_heads_that_cannot_be_read(policy):
    model = AutoModelForCausalLM.from_pretrained(policy)
    assert readable_head(model).module is model.lm_head
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(CalibrantError, match="followed by a soft cap"):
        readable_head(model)
    model.config.final_logit_softcapping = None
    head = model.lm_head
    model.lm_head = Adapted(head)
    with pytest.raises(CalibrantError, match=r"is a Adapted \(an adapter or quantised weights\?\)"):
        readable_head(model)
    model.lm_head = nn.Linear(4, 4)
    model.lm_head.weight = nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(CalibrantError, match="not a plain linear layer"):
        readable_head(model)
    with pytest.raises(CalibrantError, match="no causal language model with an output head"):
        readable_head(model.model)


def test_logits_that_a_model_scales_scale_the_gradients(policy, questions, tmp_path, monkeypatch):
    trainer = CalibratedGRPOTrainer(
        policy, f1_reward, arguments(tmp_path, method="gcpo_grad", beta=0.0), questions.select(range(8))
    )
    generator = torch.Generator().manual_seed(0)
    states, ids = torch.randn(4, 3, 192, generator=generator), torch.arange(12).view(4, 3)
    plain = trainer._policy_inputs.head._gram(trainer.model, states, ids, torch.ones(4, 3).long(), 4)
    head = readable_head(trainer.model)
    monkeypatch.setattr(head_gradients, "readable_head", lambda model: head._replace(scale=0.5))
    scaled = trainer._policy_inputs.head._gram(trainer.model, 2 * states, ids, torch.ones(4, 3).long(), 4)
    torch.testing.assert_close(scaled, plain)
