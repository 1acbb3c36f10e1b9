"""An ordinary GRPO script for TRL, and the one line that makes its updates calibrated.

    python examples/trl_one_line.py

    -from trl import GRPOConfig, GRPOTrainer
    +from calibrant.trl import CalibratedGRPOConfig as GRPOConfig, CalibratedGRPOTrainer as GRPOTrainer

Everything below the imports is as it was. Further options are there when wanted: `method`, `alpha`, `reward_range`.
"""

import torch
from datasets import Dataset

from calibrant.demo import policy_path
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOConfig as GRPOConfig
from calibrant.trl import CalibratedGRPOTrainer as GRPOTrainer


def f1_reward(completions: list[str], references: list[list[str]], **_: object) -> list[float]:
    """Twice the token F1 of each answer."""
    return [TASK.reward(TASK.extract(text), gold) for text, gold in zip(completions, references, strict=True)]


def main() -> None:
    """Trains the embedded policy for a few steps and prints what was logged."""
    config = GRPOConfig(
        output_dir="runs/trl_one_line",
        max_steps=5,
        per_device_train_batch_size=32,
        num_generations=16,
        max_completion_length=24,
        learning_rate=3e-4,
        logging_steps=1,
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list([dict(row) for row in TASK.load("train", 64, 0)])
    trainer = GRPOTrainer(str(policy_path()), f1_reward, config, data)
    trainer.train()
    for row in trainer.state.log_history[:-1]:
        print({key: round(row[key], 4) for key in ("reward", "group/weight/mean", "group/barycentric_transport/mean")})


if __name__ == "__main__":
    main()
