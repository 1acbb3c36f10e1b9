"""LoRA: the trainer takes a `peft_config` as TRL's does, and the reference is the base with the adapter switched off.

pip install 'calibrant[peft]'
python examples/lora.py                    # half a minute on a CPU
"""

from datasets import Dataset
from peft import LoraConfig

from calibrant.demo import policy_path
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer


def f1_reward(completions: list[str], references: list[list[str]], **_: object) -> list[float]:
    """Twice the token F1 of each answer."""
    return [TASK.reward(TASK.extract(text), gold) for text, gold in zip(completions, references, strict=True)]


def main() -> None:
    """Trains an adapter for a few steps and saves it."""
    config = CalibratedGRPOConfig(
        output_dir="runs/lora",
        method="gcpo_bot",
        max_steps=5,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=24,
        learning_rate=1e-3,
        beta=0.002,
        logging_steps=1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = CalibratedGRPOTrainer(
        str(policy_path()),
        f1_reward,
        config,
        Dataset.from_list([dict(row) for row in TASK.load("train", 64, 0)]),
        extract_answer=TASK.extract,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model("runs/lora/adapter")
    trained, total = trainer.model.get_nb_trainable_parameters()
    print(f"trained {trained:,} of {total:,} parameters; the adapter is in runs/lora/adapter")
    for row in trainer.state.log_history[:-1]:
        print({key: round(row[key], 4) for key in ("reward", "group/weight/mean", "kl")})


if __name__ == "__main__":
    main()
