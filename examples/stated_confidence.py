"""Calibration as a reward: a policy that states its confidence at random learns to state how often it is right.

python examples/stated_confidence.py              # two minutes on a CPU

The embedded policy is first taught, by supervised steps on its own answers, to add `<confidence>q</confidence>`, with q
drawn at random. Then `brier`, and from the same start `semantic_calibration` beside the correctness of the answer,
train it for 20 steps. Printed are accuracy and Brier score of what it states on questions about unseen countries.
"""

import argparse
import copy
import random
from functools import partial

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.policy.generation import Sampling, generate
from calibrant.policy.models import load_policy, load_tokenizer
from calibrant.rewards import brier, semantic_calibration, stated_answer, stated_confidence
from calibrant.tasks.base import Row
from calibrant.tasks.places import TASK
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

CONFIDENCES = (0.1, 0.3, 0.5, 0.7, 0.9)
LENGTH = 48  # tokens: of an answer and a confidence


def correctness(completions: list[str], references: list[list[str]], **_: object) -> list[float]:
    """1 for a right answer, 0 for a wrong one."""
    return [float(TASK.correct(stated_answer(text), gold)) for text, gold in zip(completions, references, strict=True)]


REWARDS = {
    "brier": [partial(brier, is_correct=TASK.correct)],
    "correctness + semantic_calibration": [correctness, semantic_calibration],
}


def teach(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], epochs: int) -> None:
    """Supervised steps on the policy's own answers, each followed by a confidence drawn at random."""
    prompts = [row["prompt"] for row in rows]
    answers = generate(model, tokenizer, prompts, Sampling(samples=1, temperature=0.9, max_new_tokens=24))
    draw, texts = random.Random(0), []
    for prompt, group in zip(prompts, answers, strict=True):
        ids = [token for token in group.sampled[0].ids if token != tokenizer.eos_token_id]
        stated = f" <confidence>{draw.choice(CONFIDENCES)}</confidence>"
        own = [*ids, *tokenizer(stated, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        texts.append((tokenizer(prompt)["input_ids"], own))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        draw.shuffle(texts)
        for start in range(0, len(texts), 16):
            loss = loss_of(model, texts[start : start + 16])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def loss_of(model: PreTrainedModel, texts: list[tuple[list[int], list[int]]]) -> Tensor:
    """The mean cross-entropy of completions after their prompts, padded on the right."""
    length = max(len(prompt) + len(own) for prompt, own in texts)
    ids, labels = torch.zeros(len(texts), length, dtype=torch.long), torch.full((len(texts), length), -100)
    for row, (prompt, own) in enumerate(texts):
        end = len(prompt) + len(own)
        ids[row, :end] = torch.tensor(prompt + own)
        labels[row, len(prompt) : end] = torch.tensor(own)
    loss: Tensor = model(input_ids=ids, labels=labels).loss
    return loss


def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> dict[str, float]:
    """Accuracy, share of answers that state a confidence, its mean, and its Brier score against correctness."""
    sampling = Sampling(samples=4, temperature=1.0, max_new_tokens=LENGTH)
    groups = generate(model, tokenizer, [row["prompt"] for row in rows], sampling)
    answers = [(x.text, row["references"]) for row, group in zip(rows, groups, strict=True) for x in group.sampled]
    verdicts = [TASK.correct(stated_answer(text), references) for text, references in answers]
    stated = [stated_confidence(text) for text, _ in answers]
    pairs = [(q, c) for q, c in zip(stated, verdicts, strict=True) if q is not None]
    return {
        "accuracy": sum(verdicts) / len(verdicts),
        "stated": len(pairs) / len(answers),
        "mean confidence": torch.tensor([q for q, _ in pairs]).mean().item(),
        "Brier score": torch.tensor([(q - c) ** 2 for q, c in pairs]).mean().item(),
    }


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, rows: list[Row], steps: int) -> None:
    """Trains with the rewards of a name, all of the weight 1, and saves the policy."""
    config = CalibratedGRPOConfig(
        output_dir="runs/stated_confidence", method="grpo", max_steps=steps, per_device_train_batch_size=64,
        num_generations=8, max_completion_length=LENGTH, temperature=1.0, learning_rate=1e-3, reward_range=[-1.0, 2.0],
        logging_steps=5, gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, rollouts_dir="",
    )  # fmt: skip
    data = Dataset.from_list([dict(row) for row in rows])
    trainer = CalibratedGRPOTrainer(model, REWARDS[name], config, data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(f"runs/stated_confidence/{name.split()[-1]}")


def show(name: str, figures: dict[str, float]) -> None:
    """Prints a line."""
    print(f"{name:36}" + "  ".join(f"{what} {value:.3f}" for what, value in figures.items()), flush=True)


def main() -> None:
    """Teaches, trains, and prints what the policy states before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4, help="of supervised steps")
    parser.add_argument("--prompts", type=int, default=256, help="for training")
    options = parser.parse_args()
    torch.manual_seed(0)
    policy, tokenizer = load_policy("demo"), load_tokenizer("demo")
    rows, unseen = TASK.load("train", options.prompts, 0), TASK.load("test", 64, 0)
    teach(policy, tokenizer, rows, options.epochs)
    show("before", measured(policy, tokenizer, unseen))
    for name in REWARDS:
        model = copy.deepcopy(policy)
        train(model, tokenizer, name, rows, options.steps)
        show(name, measured(model, tokenizer, unseen))


if __name__ == "__main__":
    main()
