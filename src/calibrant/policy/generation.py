"""Sampling answers from a policy, for evaluation, with their log-probabilities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.policy import logps_in_chunks
from calibrant.policy.prefill import shared_prefill
from calibrant.policy.prompts import Tokens
from calibrant.policy.verify import evaluating

Prompt = str | list[dict[str, Any]]  # a text, or a conversation

TOKENS_PER_CHUNK = 2**14
"""Completion tokens that are scored at a time: logits of all of them are held at once."""


class Completion(NamedTuple):
    """What a policy wrote."""

    text: str
    num_tokens: int  # the EOS token included
    logprob: float | None  # sum over the tokens, nats, of the distribution that was sampled; None if greedy


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    temperature: float | None,
    max_new_tokens: int,
    seed: int = 0,
    batch_size: int = 256,
    progress: str | None = None,
) -> list[list[Completion]]:
    """N lists of `samples` completions, without touching the global random state.

    The tokenizer pads on the left; conversations need its chat template. A temperature of None decodes greedily.
    `batch_size` completions are generated at a time; `progress` labels a progress bar (None: no bar).
    """
    step = max(1, batch_size // samples)
    completions: list[list[Completion]] = []
    bar = tqdm(total=len(prompts), desc=progress, disable=progress is None, leave=False)
    with evaluating(model), torch.random.fork_rng(), bar:
        torch.manual_seed(seed)
        for start in range(0, len(prompts), step):
            batch = prompts[start : start + step]
            tokens = _sample(model, tokenizer, batch, samples, temperature, max_new_tokens)
            texts = tokenizer.batch_decode(tokens.completion_ids, skip_special_tokens=True)
            counts, logprobs = tokens.completion_mask.sum(-1).tolist(), _logprobs(model, tokens, temperature)
            rows = [Completion(*row) for row in zip(texts, counts, logprobs, strict=True)]
            completions += [rows[i : i + samples] for i in range(0, len(rows), samples)]
            bar.update(len(batch))
    return completions


@torch.no_grad()
def sample_group(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> Tokens:
    """A group of `samples` answers to one prompt, on the device of the model; the global random state is untouched.

    The model has to be in evaluation mode. The group depends on the seed and nothing else that was sampled.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _sample(model, tokenizer, [prompt], samples, temperature, max_new_tokens)


def encoded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts, `[N, P]` each, padded as the tokenizer pads; a chat template has its special tokens."""
    chat = not isinstance(prompts[0], str)
    options = {"tokenize": False, "add_generation_prompt": True}
    texts = [p if isinstance(p, str) else str(tokenizer.apply_chat_template(p, **options)) for p in prompts]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not chat).to(device)
    return inputs["input_ids"], inputs["attention_mask"]


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    samples: int,
    temperature: float | None,
    max_new_tokens: int,
) -> Tokens:
    """Greedy, or samples of the whole tempered distribution, whatever the model's own generation settings are."""
    prompt, prompt_mask = (x.repeat_interleave(samples, 0) for x in encoded(tokenizer, prompts, model.device))
    options: dict[str, object] = {"do_sample": False}
    if temperature is not None:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    options |= {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}
    options |= {"max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    with shared_prefill(model):
        output = model.generate(input_ids=prompt, attention_mask=prompt_mask, **options)
    ids = output[:, prompt.shape[1] :]
    return Tokens(prompt, prompt_mask, ids, written(ids, model.generation_config.eos_token_id))


def _logprobs(model: PreTrainedModel, tokens: Tokens, temperature: float | None) -> list[float | None]:
    if temperature is None:
        return [None] * len(tokens.completion_ids)
    rows = max(1, TOKENS_PER_CHUNK // tokens.completion_ids.shape[1])
    scored = logps_in_chunks(model, *tokens, rows_per_chunk=rows, temperature=temperature)
    return scored.logps.double().sum(-1).tolist()


def written(ids: Tensor, end: int | list[int] | None) -> Tensor:
    """Mask `[B, T]` of the tokens up to the first that ends a text, that one included; `end`: which do.

    >>> written(torch.tensor([[5, 1, 0], [5, 6, 7]]), 1)
    tensor([[1, 1, 0],
            [1, 1, 1]])
    """
    ends = torch.tensor([] if end is None else [end] if isinstance(end, int) else end, device=ids.device)
    ended = torch.isin(ids, ends.to(ids.dtype)).cumsum(-1)
    return (torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1) == 0).long()
