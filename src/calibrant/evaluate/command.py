"""The steps of `calibrant evaluate`: from settings to results, sampled answers and files."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.errors import CalibrantError
from calibrant.evaluate.evaluation import (
    Table,
    differences,
    evaluate_answers,
    evaluate_rollouts,
    measured_task,
    prompt_rows,
)
from calibrant.evaluate.settings import EvaluateSettings
from calibrant.files import JsonObject, write_json, write_json_lines
from calibrant.policy.generation import PromptAnswers, Sampling, generate
from calibrant.policy.models import default_dtype, load_model, load_tokenizer, quiet_loading
from calibrant.policy.vllm import check_vllm, generate_with_vllm, vllm_engine
from calibrant.rollouts import read_rollouts, write_rollouts
from calibrant.tasks import chosen_task
from calibrant.tasks.files import Record
from calibrant.tasks.prompts import prompt_for, truncate_for_policy
from calibrant.tasks.rewards import require_reward

log = logging.getLogger(__name__)
LARGE = 100_000_000


class Evaluation(NamedTuple):
    """One evaluated model, or rollout file."""

    results: JsonObject  # the content of evaluation.json
    answers: list[Record]  # the rows of rollouts.parquet
    by_prompt: list[Record]  # the rows of prompts.jsonl


def evaluations(settings: EvaluateSettings) -> dict[str, Evaluation]:
    """Model, or rollout file -> its evaluation; an `out` that cannot hold the results is refused first."""
    if settings.out and (Path(settings.out) / "config.yaml").exists():
        raise CalibrantError(f"'{settings.out}' holds a run or an analysis; give another --out")
    names = [Path(name).name for name in settings.models]
    if settings.out and len(set(names)) < len(names):
        raise CalibrantError(f"--out has one folder '{names[0]}' for both models; evaluate them one at a time")
    task = chosen_task(settings)
    if file := settings.from_rollouts:
        frame = read_rollouts(file, ("references", "correct"))
        results, judged = evaluate_rollouts(frame, task, seed=settings.seed, path=file)
        return {file: Evaluation(results, judged, prompt_rows(measured_task(task, judged), {"sampled": judged}))}
    require_reward(task)
    if settings.engine == "vllm":
        check_vllm(settings)
    quiet_loading()
    folder = Path(settings.data_dir) if settings.data_dir else None
    rows = task.load(task.splits[-1], settings.prompts or None, 0, data_dir=folder)
    length = settings.max_completion_length or task.max_completion_length
    sampling = Sampling(settings.samples, settings.temperature, length, settings.seed, greedy=True)
    evaluated = {}
    for name in settings.models:
        with _writer(name, settings, length) as (write, tokenizer):
            fitted = truncate_for_policy(rows, tokenizer, settings.max_prompt_length, length)
            answers = write([prompt_for(row, tokenizer) for row in fitted], sampling, progress=True)
        results, answered = evaluate_answers(task, fitted, answers, sampling, tokenizer)
        about = {
            "split": task.splits[-1],
            "model": name,
            "engine": settings.engine,
            "dtype": settings.dtype or default_dtype(),
        }
        evaluated[name] = Evaluation(results | about, answered["sampled"], prompt_rows(task, answered))
    return evaluated


@contextmanager
def _writer(
    name: str, settings: EvaluateSettings, length: int
) -> Iterator[tuple[Callable[..., list[PromptAnswers]], PreTrainedTokenizerBase]]:
    """Context manager: the function that writes answers with a model, and the tokenizer of the model."""
    if settings.engine == "transformers":
        model, tokenizer = load_model(name, settings)
        if settings.dtype is None and slower_than_it_could_be(model):
            log.warning("computing in float32; this CPU has bfloat16 too, which is faster and rounds: --dtype bfloat16")
        yield partial(generate, model, tokenizer), tokenizer
        return
    tokenizer = load_tokenizer(name, trust_remote_code=settings.trust_remote_code)
    longest = min(settings.max_prompt_length + length, tokenizer.model_max_length)
    memory = settings.vllm_gpu_memory_utilization
    with vllm_engine(name, settings, max_length=longest, memory=memory) as engine:
        yield partial(generate_with_vllm, engine, tokenizer), tokenizer


def slower_than_it_could_be(model: PreTrainedModel) -> bool:
    """Whether a model of more than 100 million parameters is in float32 on a CPU with instructions for bfloat16."""
    can: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # old torch has none
    large = model.dtype == torch.float32 and model.device.type == "cpu" and model.num_parameters() > LARGE
    return large and bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def change(settings: EvaluateSettings, evaluated: Mapping[str, Evaluation]) -> Table:
    """The second model's metrics minus the first one's on the same prompts, with paired intervals."""
    before, after = evaluated.values()
    return differences(chosen_task(settings), before.answers, after.answers, seed=settings.seed)


def write(out: str, evaluated: Mapping[str, Evaluation]) -> list[Path]:
    """Writes an evaluation into a folder, evaluation.json last, of two models into one subfolder each; returns it."""
    folders = {name: Path(out) / Path(name).name if len(evaluated) > 1 else Path(out) for name in evaluated}
    for name, folder in folders.items():
        write_rollouts(folder / "rollouts.parquet", evaluated[name].answers)
        write_json_lines(folder / "prompts.jsonl", evaluated[name].by_prompt)
        write_json(folder / "evaluation.json", evaluated[name].results)
    return list(folders.values())
