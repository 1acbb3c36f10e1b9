"""Run by torchrun in a test: the trainer on two processes, with whole weights (DDP) and with weights that FSDP2 shards.

accelerate takes DDP on CPUs, whatever it is asked for, so its choice is replaced here. Prints a line of JSON.

Usage: two_sharded_training.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from calibrant.demo import policy_path
from calibrant.errors import CalibrantError
from calibrant.policy.prefill import GROUPED
from calibrant.policy.references import SlowReference
from calibrant.policy.verify import record_of
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

torch.set_num_threads(1)
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}  # fmt: skip
original = AcceleratorState.__init__


def with_fsdp(self: AcceleratorState, *arguments: object, fsdp_plugin: object = None, **keywords: object) -> None:
    """As on GPUs."""
    original(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def trained(
    folder: Path, sharded: bool, method: str, reshard: bool = True, resume: bool = False, **options: object
) -> CalibratedGRPOTrainer:
    """A trainer after three steps, or the third alone; `reshard` is FSDP2's `reshard_after_forward`."""
    for name, value in {**FSDP2, "FSDP_RESHARD_AFTER_FORWARD": str(reshard).lower()}.items():
        os.environ.pop(name, None)
        if sharded:
            os.environ[name] = value
    AcceleratorState._reset_state(reset_partial_state=True)
    args = CalibratedGRPOConfig(
        output_dir=str(folder), max_steps=3, num_generations=4, per_device_train_batch_size=4, report_to="none",
        save_strategy="steps", save_steps=2, disable_tqdm=True, gradient_checkpointing=False, use_cpu=True, beta=0.0,
        gradient_accumulation_steps=2, optim="adamw_torch", adam_epsilon=0.01, learning_rate=0.01, method=method,
        ema_decay=0.5, ema_every=1, logging_steps=1, seed=3,
        **({"bf16": False, "max_completion_length": 12} | options),
    )  # fmt: skip
    data = Dataset.from_list([dict(row) for row in TASK.load("train", 24, 0)])

    def reward(completions: list[str], **_: object) -> list[float]:
        return [2.0 * (len(completion) % 2) for completion in completions]

    model = AutoModelForCausalLM.from_pretrained(policy_path()).float()
    trainer = CalibratedGRPOTrainer(model, reward, args, data, data.select(range(4)))
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
    assert isinstance(trainer.model, FSDPModule) == sharded
    return trainer


def weights(trainer: CalibratedGRPOTrainer) -> torch.Tensor:
    """All parameters, whole."""
    for module in trainer.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    every = [p.detach() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()]
    return torch.cat([(p.full_tensor() if isinstance(p, DTensor) else p).flatten() for p in every])


def logged(trainer: CalibratedGRPOTrainer) -> list[list[float]]:
    names = ("loss", "grad_norm", "reward", "group/weight/mean", "entropy")
    return [[row[name] for name in names] for row in trainer.state.log_history if "loss" in row]


def unreadable(*_: object) -> None:
    raise CalibrantError("it cannot be read here")


def main() -> None:
    """Trains with and without FSDP2, and compares."""
    folder = Path(sys.argv[1])
    AcceleratorState.__init__ = with_fsdp
    start = torch.cat([p.flatten() for p in AutoModelForCausalLM.from_pretrained(policy_path()).float().parameters()])
    for method, reshard in (("grpo_care", True), ("capo", False)):
        whole = trained(folder / f"whole-{method}", False, method)
        expected, rows = weights(whole), logged(whole)
        sharded = trained(folder / f"sharded-{method}", True, method, reshard)
        record = record_of(sharded.model)
        assert not record.failed and {GROUPED, "flat, sharded"} <= record.verified, record
        torch.testing.assert_close(torch.tensor(logged(sharded)), torch.tensor(rows), rtol=1e-3, atol=1e-4)
        found, moved = weights(sharded), float((expected - start).norm())
        assert moved > 0 and (found - expected).norm() < 1e-3 * moved, (found - expected).norm() / moved
        again = weights(trained(folder / f"sharded-{method}", True, method, reshard, resume=True))
        assert (again - found).norm() < 1e-6 * moved, (again - found).norm() / moved
        if sharded.accelerator.is_main_process:
            result = {"method": method, "difference": float((found - expected).norm() / moved), "losses": rows}
            print(json.dumps(result | {"resumed": float((again - found).norm() / moved)}), flush=True)
    if dist.get_rank() == 1:
        SlowReference.load = unreadable
    with pytest.raises(CalibrantError, match="cannot be read here"):  # on both
        trained(folder / "sharded-grpo_care", True, "grpo_care", resume=True)
    evaluates = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    evaluates["max_completion_length"] = 64  # all end by themselves, on one process before the other
    half = trained(folder / "half", True, "gcpo_cd", reshard=False, bf16=True, **evaluates)
    assert {GROUPED, "flat, sharded"} <= record_of(half.model).verified, record_of(half.model)
    assert weights(half).isfinite().all() and half.state.global_step == 3
    half.accelerator.end_training()


if __name__ == "__main__":
    main()
