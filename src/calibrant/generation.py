"""Sampling answers from a policy, for evaluation."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.models import as_prompt


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    samples: int,
    temperature: float | None,
    max_new_tokens: int,
    seed: int = 0,
    batch_size: int = 256,
    progress: str | None = None,
) -> list[list[str]]:
    """Generates completions without touching the global random state.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, padding on the left.
        prompts: N texts.
        samples: completions a prompt.
        temperature: of sampling; None decodes greedily.
        max_new_tokens: longest completion.
        seed: of sampling.
        batch_size: completions generated at a time.
        progress: label of a progress bar; no bar when None.

    Returns:
        N lists of `samples` texts without special tokens.
    """
    was_training = model.training
    model.eval()
    step = max(1, batch_size // samples)
    completions: list[list[str]] = []
    options = _decoding(temperature) | {"num_return_sequences": samples, "max_new_tokens": max_new_tokens}
    with torch.random.fork_rng(), tqdm(total=len(prompts), desc=progress, disable=progress is None, leave=False) as bar:
        torch.manual_seed(seed)
        for start in range(0, len(prompts), step):
            batch = prompts[start : start + step]
            texts = _generate(model, tokenizer, batch, **options)
            completions += [texts[i : i + samples] for i in range(0, len(texts), samples)]
            bar.update(len(batch))
    model.train(was_training)
    return completions


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], **options: Any
) -> list[str]:
    texts = [_rendered(tokenizer, prompt) for prompt in prompts]
    chat = bool(tokenizer.chat_template)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not chat).to(model.device)
    inputs.pop("token_type_ids", None)
    output = model.generate(
        **inputs,
        **options,
        repetition_penalty=1.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _decoding(temperature: float | None) -> dict[str, Any]:
    """Greedy, or samples of the whole tempered distribution, whatever the model's own generation settings are."""
    if temperature is None:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    if not tokenizer.chat_template:
        return prompt
    return str(tokenizer.apply_chat_template(as_prompt(prompt, tokenizer), tokenize=False, add_generation_prompt=True))
