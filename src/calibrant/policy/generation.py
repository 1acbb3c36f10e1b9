"""Sampling answers from a policy, for evaluation, with their log-probabilities and token entropies.

One pass: log-probabilities and entropies are of the logits that the tokens are drawn from, in the model's own dtype,
and the greedy answer of a prompt is decoded beside its samples. Each row draws with random numbers of its own
(`calibrant.policy.sampling`), so that neither the order of prompts nor the batch size matters, but for rounding.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.policy.head import text_config
from calibrant.policy.prefill import shared_prefill
from calibrant.policy.prompts import Tokens
from calibrant.policy.sampling import GREEDY, Sampler, uniform_numbers
from calibrant.policy.verify import evaluating

Prompt = str | list[dict[str, Any]]  # a text, or a conversation

MEMORY_SHARE = 0.25
"""Share of the device's memory that a batch may take, by the estimate of `rows_that_fit`."""

MOST_ROWS = 256
"""Rows per batch at most: few enough that the last ones of a batch to end do not run alone for long (c)."""


class Sampling(NamedTuple):
    """What to write for each prompt."""

    samples: int  # number of sampled answers
    temperature: float
    max_new_tokens: int
    seed: int = 0
    greedy: bool = False  # whether to decode a greedy answer too


class Completion(NamedTuple):
    """What a policy wrote."""

    text: str
    ids: list[int]  # the EOS token included
    logprob: float | None  # sum over the tokens, nats, of the distribution that was sampled; None if greedy
    token_entropy: float | None = None  # mean over the tokens, nats, of the same; None if greedy or not known


class PromptAnswers(NamedTuple):
    """The answers to one prompt."""

    sampled: list[Completion]
    greedy: list[Completion]  # one, or none if it was not asked for


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> list[PromptAnswers]:
    """The answers to each prompt; the global random state is neither read nor changed.

    The tokenizer pads on the left; conversations need its chat template. `batch_size` completions are generated at a
    time (None: by memory), those of long prompts first.
    """
    check_fits(len(prompts) * sampling.samples, sampling.max_new_tokens)
    ids = prompt_ids(tokenizer, prompts)
    first = GREEDY if sampling.greedy else 0
    rows = [(i, s) for i in range(len(prompts)) for s in range(first, sampling.samples)]
    rows.sort(key=lambda row: -len(ids[row[0]]))
    done: dict[tuple[int, int], Completion] = {}
    bar = tqdm(desc="generating", unit=" tokens", total=0, disable=not progress, leave=False)
    with evaluating(model), bar:
        while rows:
            width = len(ids[rows[0][0]]) + sampling.max_new_tokens
            size = batch_size or rows_that_fit(model, width)
            batch, rows = rows[:size], rows[size:]
            bar.total = bar.n + round((len(batch) + len(rows)) * _expected(done, sampling))
            group = _sample(model, tokenizer, [ids[i] for i, _ in batch], batch, sampling, bar)
            done |= zip(batch, completions(tokenizer, group), strict=True)
    return [
        PromptAnswers([done[i, s] for s in range(sampling.samples)], [done[i, s] for s in range(first, 0)])
        for i in range(len(prompts))
    ]


def _expected(done: dict[tuple[int, int], Completion], sampling: Sampling) -> float:
    """The mean length of the completions so far; the longest possible before there is any."""
    lengths = [len(completion.ids) for completion in done.values()]
    return sum(lengths) / len(lengths) if lengths else sampling.max_new_tokens


class SampledTokens(NamedTuple):
    """Completions as tensors, with values of their tokens `[B, T]`, 0 after their end and in greedy rows."""

    tokens: Tokens
    logps: Tensor
    entropies: Tensor
    greedy: Tensor  # which rows are greedy, `[B]`
    states: Tensor | None  # what the output head read to predict each token, `[B, T, D]`; None if it was not recorded


@torch.no_grad()
def sample_group(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sampling: Sampling,
) -> SampledTokens:
    """The sampled answers to one prompt, on the device of the model; the global random state is untouched.

    The model has to be in evaluation mode. The group depends on the seed and nothing else that was sampled. What the
    head read is kept, where it can be recorded.
    """
    check_fits(sampling.samples, sampling.max_new_tokens)
    rows, prompts = [(0, sample) for sample in range(sampling.samples)], prompt_ids(tokenizer, [prompt])
    return _sample(model, tokenizer, prompts * sampling.samples, rows, sampling, states=True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt; a chat template has its special tokens."""
    if not prompts:
        return []
    chat = not isinstance(prompts[0], str)
    options = {"tokenize": False, "add_generation_prompt": True}
    texts = [p if isinstance(p, str) else str(tokenizer.apply_chat_template(p, **options)) for p in prompts]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=not chat)["input_ids"]
    return ids


def encoded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts, `[N, P]` each, padded on the left."""
    return left_padded(tokenizer, prompt_ids(tokenizer, prompts), device)


def left_padded(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Ids of prompts as `[N, P]`, padded on the left, and their mask."""
    inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt", padding_side="left").to(device)
    return inputs["input_ids"], inputs["attention_mask"]


def check_fits(rows: int, width: int) -> None:
    """Raises MemoryError if the token ids of so many completions alone exceed the machine's memory.

    Lists of that many rows would take it all before a tensor is too large.
    """
    if 8 * rows * width > _memory(torch.device("cpu")):
        raise MemoryError(f"{rows} completions of {width} tokens")


def rows_that_fit(model: PreTrainedModel, width: int) -> int:
    """Number of rows of `width` tokens per batch: at most `MEMORY_SHARE` of the device's memory, and `MOST_ROWS`.

    Per token, keys and values of every layer and the activations of one; per row, eight times the logits in float32.
    """
    config, item = text_config(model), model.dtype.itemsize
    attention = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or attention
    head = getattr(config, "head_dim", None) or config.hidden_size // attention
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    per_token = item * (2 * config.num_hidden_layers * heads * head + 8 * config.hidden_size + 3 * inner)
    fitting = int(MEMORY_SHARE * _memory(model.device) / (width * per_token + 32 * config.vocab_size))
    return max(1, min(fitting, MOST_ROWS))


def _memory(device: torch.device) -> int:
    """Memory of a device in bytes, in all, so that equal machines make equal batches."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[tuple[int, int]],
    sampling: Sampling,
    bar: "tqdm | None" = None,
    *,
    states: bool = False,
) -> SampledTokens:
    """Samples of the whole tempered distribution, whatever the model's own generation settings are."""
    prompt, mask = left_padded(tokenizer, prompts, model.device)
    numbers = uniform_numbers(sampling.seed, rows, sampling.max_new_tokens).to(model.device)
    end = model.generation_config.eos_token_id
    sampler = Sampler(numbers, sampling.temperature, end_tokens(end), *([bar.update] if bar is not None else []))
    options: dict[str, object] = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    options |= {"repetition_penalty": 1.0, "temperature": None, "top_k": None, "top_p": None}
    options |= {"max_new_tokens": sampling.max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    with shared_prefill(model, states=states) as decoded:
        output = model.generate(input_ids=prompt, attention_mask=mask, logits_processor=[sampler], **options)
    ids = output[:, prompt.shape[1] :]
    where = written(ids, end)
    logps, entropies = (x[:, : ids.shape[1]] for x in (sampler.logps, sampler.entropies))
    read = decoded.states_of(ids, where) if states else None
    return SampledTokens(Tokens(prompt, mask, ids, where), logps, entropies, sampler.greedy, read)


def completions(tokenizer: PreTrainedTokenizerBase, sampled: SampledTokens) -> list[Completion]:
    """The completions as texts, with the sums and means of the values of their tokens."""
    ids, counts = sampled.tokens.completion_ids.tolist(), sampled.tokens.completion_mask.sum(-1).tolist()
    texts = tokenizer.batch_decode(sampled.tokens.completion_ids, skip_special_tokens=True)
    logps, entropies = (x.double().sum(-1).tolist() for x in (sampled.logps, sampled.entropies))
    values = [
        (None, None) if greedy else (logp, entropy / count)
        for greedy, logp, entropy, count in zip(sampled.greedy.tolist(), logps, entropies, counts, strict=True)
    ]
    return [Completion(t, row[:n], *v) for t, row, n, v in zip(texts, ids, counts, values, strict=True)]


def end_tokens(end: int | list[int] | None) -> list[int]:
    """The tokens that end a text, from an EOS token as a generation configuration has it."""
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def written(ids: Tensor, end: int | list[int] | None) -> Tensor:
    """Mask `[B, T]` of the tokens up to the first that ends a text, that one included; `end`: which do.

    >>> written(torch.tensor([[5, 1, 0], [5, 6, 7]]), 1)
    tensor([[1, 1, 0],
            [1, 1, 1]])
    """
    ended = torch.isin(ids, torch.tensor(end_tokens(end), dtype=ids.dtype, device=ids.device)).cumsum(-1)
    return (torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1) == 0).long()
