"""Builds the embedded policy: a small Qwen2 model that can read a fact sheet but does not yet prefer to answer well.

    python -m calibrant.demo.build_policy --out DIR

It is warm-started by supervision on sheets of invented countries, of which no test country is one. Right answers
stand beside wordy ones, half lists, answers to another question and "I do not know", so that reinforcement learning
has something to teach: the right answer is in the distribution, it is not yet the habit.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from calibrant.tasks.places import (
    QUESTIONS,
    Facts,
    countries,
    facts_of,
    invented,
    listed,
    prompt_of,
    question_of,
    sheet_of,
)

VOCABULARY = 1024
QUESTIONS_A_SHEET = 3
OTHER_WEIGHT = 0.1
WORDY = (
    "I think it is {value}",
    "I think the answer could be {value}, but I am not sure",
    "It might be {value}, as far as I know",
    "The text seems to say that it is {value}",
)


def noisy_answer(facts: Facts, kind: str, rng: random.Random) -> str:
    """An answer as the warm start sees it: right in about a third of the cases."""
    value, draw = facts[kind], rng.random()
    if draw < 0.34:
        return value
    if draw < 0.58:
        return rng.choice(WORDY).format(value=value)
    if draw < 0.66:
        return "I do not know"
    if draw < 0.82:
        return partly(value, facts, rng)
    return facts[rng.choice([key for key in facts if key not in ("name", kind)])]


def partly(value: str, facts: Facts, rng: random.Random) -> str:
    """Half of a list, or the value with something beside it that does not belong."""
    names = value.replace(" and ", ", ").split(", ")
    if len(names) > 1 and rng.random() < 0.6:
        return listed(rng.sample(names, rng.randint(1, len(names) - 1)))
    return f"{value} and {facts[rng.choice(['capital', 'continent', 'name'])]}"


def pseudo_word(rng: random.Random) -> str:
    """A name that nobody has, to make the policy copy and not recall."""
    consonants = "bcdfghjklmnprstvwz"
    syllables = "".join(rng.choice(consonants) + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
    return (syllables + rng.choice(["", "n", "r", "s", "l", "nd", "k"])).capitalize()


def training_facts(rng: random.Random) -> Facts:
    """Facts of a country: mostly invented, from real or made-up names."""
    draw = rng.random()
    if draw < 0.45:
        return invented(rng)
    return invented(rng, lambda: pseudo_word(rng)) if draw < 0.85 else facts_of(rng.choice(countries("train")), rng)


def documents(rng: random.Random) -> Iterator[list[tuple[str, bool]]]:
    """Endless sheets with questions and noisy answers, as pieces of text and whether each is an answer."""
    while True:
        facts = training_facts(rng)
        kinds = rng.sample([k for k in QUESTIONS if k in facts], QUESTIONS_A_SHEET)
        sheet = sheet_of(facts, kinds[0], rng, also=kinds[1:])
        pieces = [(prompt_of(sheet, question_of(facts, kinds[0], rng)), False)]
        for i, kind in enumerate(kinds):
            if i:
                pieces.append((prompt_of("", question_of(facts, kind, rng)), False))
            pieces.append((" " + noisy_answer(facts, kind, rng) + "<eos>", True))
        yield pieces


def build_tokenizer(rng: random.Random) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on sheets; digits stand alone, so that numbers can be copied."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = ("".join(text for text, _ in pieces).replace("<eos>", "") for pieces in documents(rng))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((next(texts) for _ in range(20_000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left", model_max_length=512
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 of a few million parameters."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, pieces: list[tuple[str, bool]]) -> tuple[list[int], list[float]]:
    """Token ids of a document and the weight of each in the loss."""
    ids: list[int] = []
    weights: list[float] = []
    for text, is_answer in pieces:
        new = tokenizer(text)["input_ids"]
        ids += new
        weights += [1.0 if is_answer else OTHER_WEIGHT] * len(new)
    return ids, weights


def batches(tokenizer: PreTrainedTokenizerFast, size: int, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of ids and loss weights, of documents of like length."""
    stream = documents(rng)
    while True:
        encoded = [encode(tokenizer, next(stream)) for _ in range(size * 16)]
        encoded.sort(key=lambda document: len(document[0]))
        groups = [encoded[i : i + size] for i in range(0, len(encoded), size)]
        rng.shuffle(groups)
        for group in groups:
            length = len(group[-1][0])
            ids = torch.zeros(size, length, dtype=torch.long)
            weights = torch.zeros(size, length)
            for row, (tokens, weight) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                weights[row, : len(tokens)] = torch.tensor(weight)
            yield ids, weights


def loss_of(model: Qwen2ForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the next-token loss; padding stands right of the text, where it cannot be seen."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1], use_cache=False).logits
    losses = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    kept = weights[:, 1:].flatten()
    return (losses * kept).sum() / kept.sum()


def warm_start(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, size: int, peak: float, seed: int
) -> None:
    """Supervised training with a cosine schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    shape = lambda step: min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    stream = batches(tokenizer, size, random.Random(seed))
    average = 0.0
    with tqdm(range(steps), desc="warm start") as bar:
        for step in bar:
            loss = loss_of(model, *next(stream))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
            bar.set_postfix(loss=f"{average:.3f}")


def main() -> None:
    """Builds and saves tokenizer and policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to save to")
    parser.add_argument("--steps", type=int, default=2400, help="optimisation steps (default: 2400)")
    parser.add_argument("--batch", type=int, default=32, help="sheets a step (default: 32)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak (default: 2e-3)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer(random.Random(options.seed))
    model = build_model(tokenizer)
    model.set_attn_implementation("eager")  # on a CPU the backward pass of fused attention is slower in bfloat16
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    start = time.monotonic()
    warm_start(model, tokenizer, options.steps, options.batch, options.learning_rate, options.seed)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"saved to {options.out} after {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
