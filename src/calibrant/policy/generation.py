"""Sampling answers from a policy, for evaluation, with their log-probabilities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.policy import logps_in_chunks
from calibrant.policy.prefill import shared_prefill
from calibrant.policy.verify import evaluating

TOKENS_A_CHUNK = 2**14
"""Completion tokens that are scored at a time: logits of all of them are held at once."""


class Tokens(NamedTuple):
    """Rollouts as rows of tokens; masks are 0 and 1."""

    prompt_ids: Tensor  # [B, P], padded on the left
    prompt_mask: Tensor  # [B, P]
    completion_ids: Tensor  # [B, T], padded on the right
    completion_mask: Tensor  # [B, T]


class Completion(NamedTuple):
    """What a policy wrote."""

    text: str
    num_tokens: int  # the end-of-text token included
    logprob: float | None  # sum over the tokens, nats, of the distribution that was sampled; None if greedy


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    *,
    samples: int,
    temperature: float | None,
    max_new_tokens: int,
    seed: int = 0,
    batch_size: int = 256,
    progress: str | None = None,
) -> list[list[Completion]]:
    """Generates completions without touching the global random state.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, padding on the left.
        prompts: N texts, or N conversations for a tokenizer with a chat template.
        samples: completions a prompt.
        temperature: of sampling; None decodes greedily.
        max_new_tokens: longest completion.
        seed: of sampling.
        batch_size: completions generated at a time.
        progress: label of a progress bar; no bar when None.

    Returns:
        N lists of `samples` completions.
    """
    step = max(1, batch_size // samples)
    completions: list[list[Completion]] = []
    options = _decoding(temperature) | {"max_new_tokens": max_new_tokens}
    bar = tqdm(total=len(prompts), desc=progress, disable=progress is None, leave=False)
    with evaluating(model), torch.random.fork_rng(), bar:
        torch.manual_seed(seed)
        for start in range(0, len(prompts), step):
            batch = prompts[start : start + step]
            found = _generate(model, tokenizer, batch, samples, temperature, options)
            completions += [found[i : i + samples] for i in range(0, len(found), samples)]
            bar.update(len(batch))
    return completions


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    samples: int,
    temperature: float | None,
    options: dict[str, Any],
) -> list[Completion]:
    tokens = _sample(model, tokenizer, prompts, samples, options)
    logprobs = _logprobs(model, tokens, temperature)
    decoded = tokenizer.batch_decode(tokens.completion_ids, skip_special_tokens=True)
    counts = tokens.completion_mask.sum(-1).tolist()
    return [Completion(*each) for each in zip(decoded, counts, logprobs, strict=True)]


@torch.no_grad()
def sample_group(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Any,
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> Tokens:
    """Samples a group of answers to one prompt, without touching the global random state.

    Args:
        model: a causal language model, in evaluation mode.
        tokenizer: its tokenizer, padding on the left.
        prompt: a text, or a conversation for a tokenizer with a chat template.
        samples: G.
        temperature: of sampling.
        max_new_tokens: longest completion.
        seed: of sampling; the group depends on nothing else that was sampled.

    Returns:
        G rows of tokens, on the device of the model.
    """
    options = _decoding(temperature) | {"max_new_tokens": max_new_tokens}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _sample(model, tokenizer, [prompt], samples, options)


def encoded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Any], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts, `[N, P]` each, padded as the tokenizer pads; a chat template has its special tokens."""
    texts = [_rendered(tokenizer, prompt) for prompt in prompts]
    chat = not isinstance(prompts[0], str)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not chat).to(device)
    return inputs["input_ids"], inputs["attention_mask"]


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    samples: int,
    options: dict[str, Any],
) -> Tokens:
    prompt, prompt_mask = (x.repeat_interleave(samples, 0) for x in encoded(tokenizer, prompts, model.device))
    options |= {"repetition_penalty": 1.0, "pad_token_id": tokenizer.pad_token_id}
    with shared_prefill(model):
        output = model.generate(input_ids=prompt, attention_mask=prompt_mask, **options)
    ids = output[:, prompt.shape[1] :]
    return Tokens(prompt, prompt_mask, ids, written(ids, model.generation_config.eos_token_id))


def _logprobs(model: PreTrainedModel, tokens: Tokens, temperature: float | None) -> list[float | None]:
    if temperature is None:
        return [None] * len(tokens.completion_ids)
    rows = max(1, TOKENS_A_CHUNK // tokens.completion_ids.shape[1])
    scored = logps_in_chunks(model, *tokens, rows_per_chunk=rows, temperature=temperature)
    return scored.logps.double().sum(-1).tolist()


def written(ids: Tensor, end: int | list[int] | None) -> Tensor:
    """Which tokens a policy wrote: all up to the first that ends a text, that one included.

    Args:
        ids: `[B, T]`.
        end: the tokens that end a text.

    Returns:
        `[B, T]`, 0 and 1.

    >>> written(torch.tensor([[5, 1, 0], [5, 6, 7]]), 1)
    tensor([[1, 1, 0],
            [1, 1, 1]])
    """
    ends = torch.tensor([] if end is None else [end] if isinstance(end, int) else end, device=ids.device)
    ended = torch.isin(ids, ends.to(ids.dtype)).cumsum(-1)
    return (torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1) == 0).long()


def _decoding(temperature: float | None) -> dict[str, Any]:
    """Greedy, or samples of the whole tempered distribution, whatever the model's own generation settings are."""
    single = {"num_beams": 1, "num_return_sequences": 1}
    if temperature is None:
        return {"do_sample": False, **single}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, **single}


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
