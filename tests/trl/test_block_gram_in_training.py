"""The trainer's `block_gram`: against the gradients of the last block, across processes, and where it cannot be."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from test_policy_inputs import TOKENS, Keeping, rows_of
from test_trainer import arguments, f1_reward, launch, same_bits, train
from transformers import AutoModelForCausalLM

from calibrant.errors import CalibrantError
from calibrant.gradients import block, gradient_variance
from calibrant.methods import METHODS
from calibrant.policy.block import BlockInputs
from calibrant.policy.decode import Decoded
from calibrant.trl import CalibratedGRPOTrainer


def reading(rewards, block_gram, where):
    """Reads the matrices and does as Dr. GRPO does."""
    return METHODS["dr_grpo"](rewards, where)


class Seeing(Keeping):
    """Keeps the matrices beside the tokens."""

    seen: ClassVar[list] = []

    def _log_scores(self, mode, scored, advantages):
        self.seen.append(scored.groups.inputs["block_gram"])


@pytest.fixture(autouse=True)
def nothing_seen():
    Seeing.seen.clear()
    Seeing.batches.clear()


def trained(policy, questions, folder, **changes):
    options = dict(beta=0.0, temperature=0.7, max_steps=1, bf16=False, model_init_kwargs={"dtype": "float32"})
    args = arguments(folder, method="test_block_gram_in_training.reading", **(options | changes))
    train(policy, questions, args, kind=Seeing)
    return Seeing.seen.pop(0)


@pytest.mark.parametrize("changes", [{}, {"share_prefix": False}, {"gradient_accumulation_steps": 4}])
def test_inner_products_are_those_of_the_last_block(policy, questions, tmp_path, changes):
    rows = 8 // changes.get("gradient_accumulation_steps", 1)
    found = trained(policy, questions, tmp_path, per_device_train_batch_size=rows, **changes)
    model = AutoModelForCausalLM.from_pretrained(policy).double()
    batch, last = dict(zip(TOKENS, (Seeing.batches[0][k] for k in TOKENS), strict=True)), model.config.num_hidden_layers
    expected = gradient_variance(
        model, batch, torch.ones(2, 4).double(), parameters=f"*.{last - 1}.*", gram=True, temperature=0.7
    ).gram
    scale = expected.diagonal(dim1=-2, dim2=-1).amax()
    assert found.dtype == torch.float64 and expected.std() > 0.05 * scale
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale.item())


def test_what_was_read_while_sampling_is_not_computed_again(policy, questions, tmp_path, monkeypatch):
    alone, passes = block._recorded, []
    monkeypatch.setattr(block, "_recorded", lambda *given: passes.append(1) or alone(*given))
    first = trained(policy, questions, tmp_path / "a")
    assert len(passes) == 1  # of the row that is compared with a plain forward, once for a model
    monkeypatch.setattr(Decoded, "block_inputs_of", lambda *_: None)
    again = trained(policy, questions, tmp_path / "b")
    assert len(passes) == 1 + 1 + 2
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-4 * first.abs().max().item())


def test_reading_gradients_leaves_training_alone(policy, questions, tmp_path):
    plain = train(policy, questions, arguments(tmp_path / "a", method="dr_grpo", beta=0.0))
    args = arguments(tmp_path / "b", method="test_block_gram_in_training.reading", beta=0.0)
    assert same_bits(plain, train(policy, questions, args, kind=Seeing))
    assert [x.shape for x in Seeing.seen] == [(2, 4, 4)] * 2


@pytest.mark.parametrize("method", ["gradient_snr", "gcpo_grad"])
def test_methods_at_the_depth_of_the_block(policy, questions, tmp_path, method):
    class Recording(CalibratedGRPOTrainer):
        def _log_scores(self, mode, scored, advantages):
            inputs = scored.groups.inputs
            assert "head_gram" not in inputs and self._policy_inputs.head is None
            recorded.append(METHODS[method](scored.groups.rewards, None, None, inputs["block_gram"], depth="block"))

    recorded = []
    options = dict(num_generations=8, per_device_train_batch_size=16, max_steps=1, method_options={"depth": "block"})
    train(policy, questions, arguments(tmp_path, method=method, **options), kind=Recording)
    rows = rows_of(tmp_path, 1)
    np.testing.assert_allclose(rows.weight, recorded[0].weights.flatten(), rtol=1e-6)
    assert ("block_variance" if method == "gradient_snr" else "gradient_dispersion") in rows


def test_inputs_of_all_processes_have_a_prompt_per_row(policy, questions, tmp_path, monkeypatch):
    args = arguments(tmp_path, method="gradient_snr", method_options={"depth": "block"})
    gradients = CalibratedGRPOTrainer(policy, f1_reward, args, questions)._policy_inputs.block
    where = torch.tensor([[False, True, True], [True, True, True]])
    inputs = BlockInputs(torch.randn(2, 3, 4), where, torch.tensor([1, 0, 0, 1]), torch.randn(4, 5, 4))
    found = gradients._gathered_inputs(inputs)  # of a single process: all of its rows
    assert torch.equal(found.rollouts, inputs.rollouts)
    assert all(torch.equal(found.of_prompt(row), inputs.of_prompt(row)) for row in range(4))
    assert gradients._gathered_inputs(None) is None
    monkeypatch.setattr(gradients.accelerator, "gather", lambda x: torch.cat([x, torch.ones_like(x)]))  # another's
    assert gradients._gathered_inputs(inputs) is None


@pytest.mark.slow
def test_a_group_that_straddles_two_processes_is_read_whole(tmp_path):
    """Groups of 4, 6 rows a process; in bfloat16, where padding moves the third digit."""
    options = dict(method="gradient_snr", options='{"depth": "block"}')
    one, two = launch(tmp_path / "one", 1, 12, **options), launch(tmp_path / "two", 2, 6, **options)
    np.testing.assert_allclose(one.weight, two.weight, rtol=0, atol=3e-2)
    np.testing.assert_allclose(one.block_variance, two.block_variance, rtol=3e-2)
    assert one.block_variance.nunique() == 3


def test_refusals(policy, questions, tmp_path):
    named = dict(method="gcpo_grad", method_options={"depth": "block"})
    with pytest.raises(CalibrantError, match="'block_gram' is not computed with cast_lm_head_to_fp32"):
        CalibratedGRPOTrainer(policy, f1_reward, arguments(tmp_path, cast_lm_head_to_fp32=True, **named), questions)
    trainer = CalibratedGRPOTrainer(policy, f1_reward, arguments(tmp_path, **named), questions)
    mask = torch.ones(4, 2)
    with pytest.raises(CalibrantError, match="not computed for prompts with images"):
        trainer._policy_inputs.block(trainer.model, {"completion_ids": mask, "pixel_values": mask}, mask, 4)
