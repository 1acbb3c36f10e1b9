"""Run by torchrun in a test: two steps whose groups without reward spread are replaced, on two processes.

Usage: two_resampling.py FOLDER
"""

import sys

import torch
from datasets import Dataset

from calibrant.demo import policy_path
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

torch.set_num_threads(1)


def by_place(completions, useful, **_):
    """Rewards that differ within a group for useful prompts alone."""
    return [float(i % 2) if use else 1.0 for i, use in enumerate(useful)]


def main() -> None:
    """Trains two steps and prints what was resampled."""
    rows = [{**row, "useful": i % 3 == 0} for i, row in enumerate(TASK.load("train", 24, 0))]
    args = CalibratedGRPOConfig(
        output_dir=sys.argv[1], max_steps=2, num_generations=4, per_device_train_batch_size=8, max_completion_length=4,
        report_to="none", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, use_cpu=True, beta=0.0,
        bf16=False, method="rd_only", resample_uninformative=8, logging_steps=1,
    )  # fmt: skip
    trainer = CalibratedGRPOTrainer(str(policy_path()), by_place, args, Dataset.from_list(rows))
    trainer.train()
    if trainer.accelerator.is_main_process:
        for row in trainer.state.log_history:
            if "batch/resampled" in row:
                print("resampled", row["batch/resampled"], "uninformative", row["group/uninformative"])


if __name__ == "__main__":
    main()
