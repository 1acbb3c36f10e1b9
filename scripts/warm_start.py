"""The warm start of the embedded policies: supervision on documents whose answers are right or faulty.

A document is a list of pieces of text, each with whether it is an answer; answers weigh more in the loss.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 1024
OTHER_WEIGHT = 0.1

Document = list[tuple[str, bool]]
Documents = Callable[[random.Random], Iterator[Document]]


def build_tokenizer(documents: Documents, rng: random.Random) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on documents; digits stand alone, so that numbers can be copied."""
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


def encode(tokenizer: PreTrainedTokenizerFast, pieces: Document) -> tuple[list[int], list[float]]:
    """Token ids of a document and the weight of each in the loss."""
    ids: list[int] = []
    weights: list[float] = []
    for text, is_answer in pieces:
        new = tokenizer(text)["input_ids"]
        ids += new
        weights += [1.0 if is_answer else OTHER_WEIGHT] * len(new)
    return ids, weights


def batches(
    documents: Documents, tokenizer: PreTrainedTokenizerFast, size: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
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


def warm_start(model: Qwen2ForCausalLM, data: Iterator[tuple[Tensor, Tensor]], steps: int, peak: float) -> None:
    """Supervised training with a cosine schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    shape = lambda step: min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    average = 0.0
    with tqdm(range(steps), desc="warm start") as bar:
        for step in bar:
            loss = loss_of(model, *next(data))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
            bar.set_postfix(loss=f"{average:.3f}")


def build(documents: Documents, description: str | None) -> None:
    """The command of a build script: builds and saves tokenizer and policy.

    Args:
        documents: generator -> endless documents.
        description: of the command.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to save to")
    parser.add_argument("--start-from", type=Path, help="folder of an earlier build to go on from; with another --seed")
    parser.add_argument("--steps", type=int, default=2400, help="optimisation steps (default: 2400)")
    parser.add_argument("--batch", type=int, default=32, help="documents a step (default: 32)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak (default: 2e-3)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    if options.start_from:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.start_from)
        model = Qwen2ForCausalLM.from_pretrained(options.start_from, dtype=torch.float32, use_safetensors=True)
    else:
        tokenizer = build_tokenizer(documents, random.Random(options.seed))
        model = build_model(tokenizer)
    model.set_attn_implementation("eager")  # on a CPU the backward pass of fused attention is slower in bfloat16
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    start = time.monotonic()
    data = batches(documents, tokenizer, options.batch, random.Random(options.seed))
    warm_start(model, data, options.steps, options.learning_rate)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"saved to {options.out} after {(time.monotonic() - start) / 60:.1f} minutes")
