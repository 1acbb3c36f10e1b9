"""Run by torchrun in a test: one step on rollouts that depend on the group and the place in it alone.

Usage: two_processes.py FOLDER ROWS_PER_DEVICE METHOD
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset

from calibrant.demo import policy_path
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

torch.set_num_threads(1)
ANSWERS = ["Paris", "I think it is Paris", "the euro and the franc", "42", "Paris franc", "Lyon"]


class FixedRollouts(CalibratedGRPOTrainer):
    """Answers from a list in place of sampling."""

    def _generate_single_turn(self, prompt_ids, *_args, **_keywords):
        first = self.accelerator.process_index * len(prompt_ids)
        rows = range(first, first + len(prompt_ids))
        texts = [ANSWERS[row % 4 + row // 4] for row in rows]
        return [self.processing_class(t)["input_ids"] + [self.processing_class.eos_token_id] for t in texts], None

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        file = Path(self.args.output_dir) / f"trained-{self.accelerator.process_index}.json"
        file.write_text(json.dumps(output["advantages"].tolist()))
        return output


def main() -> None:
    """Trains one step."""
    folder, rows, method = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    Path(folder).mkdir(parents=True, exist_ok=True)
    data = Dataset.from_list(
        [{**row, "references": ["Paris", "euro", "Paris franc"]} for row in TASK.load("train", 24, 0)]
    )

    def reward(completions, references, **_):
        return [TASK.reward(TASK.extract(c), r) for c, r in zip(completions, references, strict=True)]

    args = CalibratedGRPOConfig(
        output_dir=folder, max_steps=1, num_generations=4, per_device_train_batch_size=rows, max_completion_length=16,
        report_to="none", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, use_cpu=True, beta=0.0,
        shuffle_dataset=False, method=method,
    )  # fmt: skip
    FixedRollouts(str(policy_path()), reward, args, data).train()


if __name__ == "__main__":
    main()
