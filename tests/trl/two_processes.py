"""Run by torchrun in a test: one step on rollouts that depend on the group and the place in it alone.

Usage: two_processes.py FOLDER ROWS_PER_DEVICE PASSES METHOD METHOD_OPTIONS
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from calibrant.demo import policy_path
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

torch.set_num_threads(1)
ANSWERS = ["Paris", "I think it is Paris", "the euro and the franc of Paris", "42", "Paris franc", "Lyon"]


class FixedRollouts(CalibratedGRPOTrainer):
    """Answers from a list in place of sampling."""

    def _generate_single_turn(self, prompt_ids, *_args, **_keywords):
        first = self.accelerator.process_index * len(prompt_ids)
        rows = range(first, first + len(prompt_ids))
        texts = [ANSWERS[(row % 4 + row // 4) % len(ANSWERS)] for row in rows]
        return [self.processing_class(t)["input_ids"] + [self.processing_class.eos_token_id] for t in texts], None

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        file = Path(self.args.output_dir) / f"trained-{self.accelerator.process_index}.json"
        file.write_text(json.dumps(output["advantages"].tolist()))
        return output


def main() -> None:
    """Trains one step."""
    folder, rows, passes, method = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    Path(folder).mkdir(parents=True, exist_ok=True)
    data = Dataset.from_list(
        [{**row, "references": ["Paris", "euro", "Paris franc"]} for row in TASK.load("train", 24, 0)]
    )

    def reward(completions, references, **_):
        return [TASK.reward(TASK.extract(c), r) for c, r in zip(completions, references, strict=True)]

    args = CalibratedGRPOConfig(
        output_dir=folder, max_steps=1, num_generations=4, per_device_train_batch_size=rows, max_completion_length=16,
        report_to="none", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, use_cpu=True, beta=0.0,
        shuffle_dataset=False, gradient_accumulation_steps=passes, bf16=False, optim="sgd", learning_rate=0.1,
        model_init_kwargs={"dtype": "float32"}, max_grad_norm=0.0, method=method, method_options=sys.argv[5],
    )  # fmt: skip
    trainer = FixedRollouts(str(policy_path()), reward, args, data)
    trainer.train()
    assert trainer._sharing, "prompts were not shared"
    if trainer.accelerator.is_main_process:
        parameters = [x.detach().flatten() for x in trainer.accelerator.unwrap_model(trainer.model).parameters()]
        np.save(Path(folder) / "parameters.npy", torch.cat(parameters).numpy())
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
