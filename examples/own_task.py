"""Data, an extractor and rewards of your own with the trainer.

    python examples/own_task.py                # half a minute on a CPU

A reward function gets TRL's arguments: the completions, and the columns of the data set by name. It returns one float
per completion, None for one that cannot be scored. With several of them `task_reward` names the one that signals read.
"""

import random

from datasets import Dataset

from calibrant.demo import policy_path
from calibrant.tasks.places import invented, prompt_of, question_of, sheet_of
from calibrant.text.metrics import token_f1
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer


def rows(count: int, seed: int = 0) -> Dataset:
    """Questions for the currency of invented countries: prompt, accepted answers, and an id for the rollout files."""
    rng = random.Random(seed)
    facts = [invented(rng) for _ in range(count)]
    return Dataset.from_dict(
        {
            "prompt": [prompt_of(sheet_of(f, "currency", rng), question_of(f, "currency", rng)) for f in facts],
            "references": [[f["currency"], f"the {f['currency']}"] for f in facts],
            "prompt_id": [f"currency-{i}" for i in range(count)],
        }
    )


def first_line(completion: str) -> str:
    """The answer: what stands on the first line."""
    return completion.strip().partition("\n")[0].strip()


def f1(completions: list[str], references: list[list[str]], **_: object) -> list[float]:
    """Token F1 with the best of the accepted answers."""
    return [token_f1(first_line(text), golds) for text, golds in zip(completions, references, strict=True)]


def brevity(completions: list[str], **_: object) -> list[float]:
    """A shaping reward, which signals do not read: 0 for an answer of up to 20 characters, less for a longer one."""
    return [min(0.0, 20 - len(first_line(text))) / 100 for text in completions]


def main() -> None:
    """Trains the embedded policy for a few steps and prints what was logged."""
    config = CalibratedGRPOConfig(
        output_dir="runs/own_task",
        method="gcpo_cd",
        reward_range=[0.0, 1.0],
        task_reward="f1",
        max_steps=5,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=24,
        learning_rate=1e-4,
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
        [f1, brevity],
        config,
        rows(64),
        extract_answer=first_line,
        is_correct=lambda answer, references: answer in references,
    )
    trainer.train()
    for row in trainer.state.log_history[:-1]:
        print({key: round(row[key], 4) for key in ("rewards/f1/mean", "rewards/brevity/mean", "group/weight/mean")})


if __name__ == "__main__":
    main()
