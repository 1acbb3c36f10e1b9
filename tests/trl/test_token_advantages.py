"""Weights and advantages per token in training: what reaches TRL's loss, the rollout file and the metrics."""

import json

import pandas as pd
import pytest
import torch
from test_trainer import arguments, f1_reward, launch, losses, same_bits, train

from calibrant.errors import CalibrantError
from calibrant.methods import Outcome
from calibrant.rollouts import read_rollouts
from calibrant.trl import CalibratedGRPOTrainer

SHAPES = [{}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "beta": 0.0}]


def halves(rewards, token_logprobs, where):
    """Half the gradient of every second token."""
    weights = torch.ones_like(token_logprobs)
    weights[..., 1::2] = 0.5
    return Outcome(weights, {})


@pytest.mark.parametrize("changes", SHAPES)
def test_tokens_of_equal_weight_are_grpo(policy, questions, tmp_path, changes):
    plain = train(policy, questions, arguments(tmp_path / "a", method="gcpo_bot", alpha=0.0, **changes))
    options = {"method": "eg_spo", "method_options": {"level": "token", "phi": 1.0}}
    even = train(policy, questions, arguments(tmp_path / "b", **options, **changes))
    assert losses(even) == losses(plain) and same_bits(even, plain)


def test_the_loss_is_that_of_trls_entropy_mask(policy, questions, tmp_path):
    changes = {"max_steps": 1, "beta": 0.0, "per_device_train_batch_size": 16, "max_grad_norm": 0.0, "optim": "sgd"}
    masked = train(policy, questions, arguments(
        tmp_path / "a", method="gcpo_bot", alpha=0.0, top_entropy_quantile=0.2, **changes))  # fmt: skip
    gated = train(policy, questions, arguments(
        tmp_path / "b", method="eg_spo", method_options={"level": "token", "phi": 0.0}, **changes))  # fmt: skip
    pairs = zip(masked.model.parameters(), gated.model.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-7
    assert losses(gated) == pytest.approx(losses(masked), abs=1e-6)


def test_each_token_has_its_own_weight_in_the_loss(policy, questions, tmp_path):
    seen = []

    class Watched(CalibratedGRPOTrainer):
        def _compute_loss(self, model, inputs):
            seen.append(inputs)
            return super()._compute_loss(model, inputs)

    changes = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = train(policy, questions, arguments(tmp_path, method=halves, **changes), kind=Watched)
    for batch in seen:
        assert batch["advantages"].shape == batch["completion_ids"].shape
        first, second = batch["advantages"][:, 0], batch["advantages"][:, 1]
        assert torch.equal(second, 0.5 * first)
    rows = pd.concat(read_rollouts(path) for path in tmp_path.glob("_rollouts/*.parquet"))
    mean = [1 - 0.25 * (n // 2 * 2) / n for n in rows.num_tokens]  # of 1 1/2 1 1/2 ...
    assert rows.weight.tolist() == pytest.approx(mean)
    assert rows.advantage.tolist() == pytest.approx([a * w for a, w in zip(rows.advantage_base, mean, strict=True)])
    logged = trainer.state.log_history[0]
    assert logged["token/weight/min"] == 0.5 and logged["token/weight/max"] == 1.0
    assert logged["group/weight/mean"] == pytest.approx(sum(mean) / len(mean))


def test_kl_cov_acts_from_the_second_update_on(policy, questions, tmp_path):
    changes = {"num_iterations": 2, "max_steps": 4, "per_device_train_batch_size": 8, "beta": 0.0}
    plain = train(policy, questions, arguments(tmp_path / "a", method="gcpo_bot", alpha=0.0, **changes))
    held = train(policy, questions, arguments(
        tmp_path / "b", method="kl_cov", method_options={"share": 0.3, "coefficient": 5.0}, **changes))  # fmt: skip
    first, second = ([row["grad_norm"] for row in x.state.log_history if "grad_norm" in row] for x in (plain, held))
    assert second[0] == pytest.approx(first[0], rel=1e-5) and second[1] != pytest.approx(first[1], rel=1e-3)
    ratios = [row["batch/token_log_ratios/mean"] for row in held.state.log_history if "grad_norm" in row]
    assert ratios[0] == pytest.approx(0.0, abs=1e-5) and ratios[1] > 1e-4


def test_a_draw_goes_on_where_a_checkpoint_ended(policy, questions, tmp_path):
    options = {"method": "clip_cov", "method_options": {"share": 0.2, "low": -9.0, "high": 9.0}, "max_steps": 4}
    whole = train(policy, questions, arguments(tmp_path / "a", **options))
    steps = {"save_strategy": "steps", "save_steps": 2}
    train(policy, questions, arguments(tmp_path / "b", **options, **steps))
    rest = CalibratedGRPOTrainer(policy, f1_reward, arguments(tmp_path / "c", **options), questions)
    rest.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert same_bits(rest, whole) and rest._memory["step"] == 4


def test_a_kernel_without_weights_per_token_is_refused(policy, questions, tmp_path):
    args = arguments(tmp_path, method="clip_cov")
    args.use_liger_kernel = True
    with pytest.raises(CalibrantError, match="'clip_cov' has weights per token, which the Liger kernel's loss cannot"):
        CalibratedGRPOTrainer(policy, f1_reward, args, questions)


def test_completions_of_two_processes_are_padded_together(tmp_path):
    one, two = (launch(tmp_path / str(n), n, 4 // n, 1, "test_token_advantages.halves") for n in (1, 2))
    pd.testing.assert_frame_equal(one, two)
    names = ("1/trained-0.json", "2/trained-0.json", "2/trained-1.json")
    whole, *parts = (json.loads((tmp_path / name).read_text()) for name in names)
    assert len(parts[0][0]) != len(parts[1][0])  # each process keeps the width of its own longest completion
    assert all(b == a[: len(b)] for a, b in zip(whole, parts[0] + parts[1], strict=True))
