"""Rows with an advantage of 0 get no pass while the policy is the one that sampled; TRL's metrics still count them."""

import pytest
import torch
from test_micro_batches import half_constant
from test_trainer import arguments, train

from calibrant.trl import shared_prompts


@pytest.mark.parametrize("updates", [1, 2])
def test_rows_without_advantage_need_no_forward_pass(policy, questions, tmp_path, monkeypatch, updates):
    passes = {True: [], False: []}
    original = shared_prompts.logps_in_chunks

    def counting(model, prompt_ids, *tensors, **options):
        passes[torch.is_grad_enabled()].append(len(prompt_ids))
        return original(model, prompt_ids, *tensors, **options)

    monkeypatch.setattr(shared_prompts, "logps_in_chunks", counting)
    changes = {"per_device_train_batch_size": 16, "num_iterations": updates, "max_steps": 2, "beta": 0.0}
    trainer = train(policy, questions, arguments(tmp_path, method="grpo", **changes), half_constant)
    shares = [row["batch/left_out"] for row in trainer.state.log_history if "batch/left_out" in row]
    assert passes[True] == [round(16 * (1 - share)) for share in shares] and max(shares) > 0
    # of several updates: once for the sampling policy, and once for rows left out at each update
    assert len(passes[False]) == (0 if updates == 1 else 3)
