"""An estimate of the time and the memory of a run, from a few measurements of its model on its prompts."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from calibrant.methods import read_inputs, resolve_method
from calibrant.policy.adapters import with_new_adapter
from calibrant.policy.generation import Sampling, generate
from calibrant.policy.models import load_policy
from calibrant.scorer import options_of
from calibrant.tasks.prompts import prompt_for, prompt_tokens
from calibrant.train.prepare import Prepared
from calibrant.train.settings import TrainSettings

FEW, MORE = 2, 10  # tokens of the two generations whose difference is the time of a token
TOKENS = 512  # of the pass that is measured
OF_REFERENCES = ("ref_mean_logprob", "answer_confidence")  # inputs of methods that are read from another model


class StepSeconds(NamedTuple):
    """Seconds, each measured once, of a step's prompts and rollouts."""

    prefill: float  # generating a first token
    token: float  # generating one more token, for all rollouts
    pass_token: float  # a pass without gradients, per token


class RunSeconds(NamedTuple):
    """Seconds that a run is estimated to take."""

    step: float  # of optimisation, generation included
    generation: float  # of a step's rollouts
    evaluation: float  # one; 0 without


def estimate_step(prepared: Prepared) -> list[str]:
    """Lines of a table: seconds per step and of the run, and bytes by what they are for, without activations."""
    model = _model(prepared.settings)
    return [*_time(prepared, run_seconds(prepared, model)), *_memory(prepared.settings, model, _length(prepared))]


def _model(settings: TrainSettings) -> PreTrainedModel:
    model = load_policy(settings.model, settings)
    return with_new_adapter(model, settings, settings.seed) if settings.use_peft else model


def _length(prepared: Prepared) -> int:
    return prepared.settings.max_completion_length or prepared.task.max_completion_length


def _measure(prepared: Prepared, model: PreTrainedModel) -> StepSeconds:
    settings, tokenizer = prepared.settings, prepared.tokenizer
    prompts = [prompt_for(row, tokenizer) for row in prepared.training[: settings.prompts_per_step]]

    def generated(tokens: int) -> float:
        sampling = Sampling(settings.rollouts, settings.temperature, tokens)
        return _seconds(lambda: generate(model, tokenizer, prompts, sampling))

    generated(1)  # the first call loads libraries
    few, more = generated(FEW), generated(MORE)
    token = max(0.0, more - few) / (MORE - FEW)
    width = min(prompt_tokens(row, tokenizer) for row in prepared.training[:4])
    batch = torch.ones(max(1, TOKENS // width), width, dtype=torch.long, device=model.device)
    with torch.no_grad():
        passed = min(_seconds(lambda: model(input_ids=batch, logits_to_keep=1)) for _ in range(2))
    return StepSeconds(max(0.0, few - FEW * token), token, passed / batch.numel())


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def run_seconds(prepared: Prepared, model: PreTrainedModel | None = None) -> RunSeconds:
    """Seconds of a step and of an evaluation, if every completion has the maximum length."""
    settings, prompts, length = prepared.settings, prepared.settings.prompts_per_step, _length(prepared)
    measured = _measure(prepared, model or _model(settings))
    lengths = [prompt_tokens(row, prepared.tokenizer) for row in prepared.training[:50]]
    prompt, rollouts = sum(lengths) / len(lengths), prompts * settings.rollouts
    per_pass = rollouts * length + prompt * (prompts if settings.share_prefix else rollouts)
    passes = 3.0 + settings.gradient_checkpointing + (settings.beta > 0) + _others(settings)
    generation = measured.prefill + length * measured.token
    step = generation + settings.num_iterations * passes * per_pass * measured.pass_token
    share = len(prepared.evaluation) * (1 + settings.eval_samples) / rollouts
    return RunSeconds(step, generation, share * generation)


def _time(prepared: Prepared, seconds: RunSeconds) -> list[str]:
    whole = prepared.settings.steps * seconds.step + 2 * seconds.evaluation
    return [
        f"time per step:  about {duration(seconds.step)}, of which generation {duration(seconds.generation)}, if every "
        f"completion has {_length(prepared)} tokens",
        f"time of a run:  about {duration(whole)} for {prepared.settings.steps} steps"
        + (" and two evaluations" if prepared.evaluation else ""),
    ]


def _memory(settings: TrainSettings, model: PreTrainedModel, length: int) -> list[str]:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    copies = 0 if settings.use_peft else int(settings.beta > 0) + _others(settings)
    rows = min(settings.micro_batch or settings.prompts_per_step * settings.rollouts, 64)
    logits = 2 * 4 * rows * length * model.config.get_text_config().vocab_size
    parts = {"weights": weights, "gradients": trained, "AdamW": 2 * trained, "reference models": copies * weights}
    parts["logits and their gradient, up to"] = logits
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
    return [f"memory:         {sum(parts.values()) / 1e9:.2f} GB and activations ({listed})"]


def _others(settings: TrainSettings) -> int:
    """Models beside the policy that the method reads."""
    method = resolve_method(settings.method)
    return int(bool(set(OF_REFERENCES) & set(read_inputs(method, options_of(method, settings)))))


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> [duration(x) for x in (0.5, 90, 7200)]
    ['0.5 s', '1.5 min', '2.0 h']
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
