"""The TRL trainer of a run, made from its settings."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from calibrant.errors import CalibrantError, reason
from calibrant.policy.adapters import is_adapter, lora_config
from calibrant.policy.models import load_policy, locate
from calibrant.policy.quantised import quantization_config, weights_dtype
from calibrant.tasks.base import Task
from calibrant.tasks.prompts import prompt_for
from calibrant.tasks.rewards import trained_rewards
from calibrant.train.callbacks import CheckpointMarker, MetricsWriter, TrainingProgress
from calibrant.train.prepare import Prepared
from calibrant.train.processes import processes
from calibrant.train.runs import Run
from calibrant.train.settings import TrainSettings
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer


def build_trainer(
    run: Run, prepared: Prepared, *, extra_callbacks: Sequence[TrainerCallback] = ()
) -> CalibratedGRPOTrainer:
    """The trainer of a run, with its data, rewards and callbacks."""
    settings, task, tokenizer = prepared.settings, prepared.task, prepared.tokenizer
    rows = [
        {"prompt_id": row["prompt_id"], "prompt": prompt_for(row, tokenizer), "references": row["references"] or None}
        for row in prepared.training
    ]
    policy, arguments = policy_of(settings), training_arguments(run, settings, task)
    if not isinstance(policy, str):  # it is loaded
        arguments.model_init_kwargs = None
    with vllm_errors():
        trainer = CalibratedGRPOTrainer(
            policy,
            trained_rewards(task, prepared.training),
            arguments,
            Dataset.from_list(rows),
            processing_class=tokenizer,
            extract_answer=task.extract,
            cluster=task.clusters,
            judge=task.correct_batch,
            quantization_config=quantization_config(settings),
            peft_config=lora_config(settings) if settings.use_peft else None,
            callbacks=[MetricsWriter(run), CheckpointMarker(run, settings.method), *extra_callbacks],
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingProgress())
    return trainer


@contextmanager
def vllm_errors() -> Iterator[None]:
    """Context manager: a vLLM server that does not answer is a CalibrantError."""
    try:
        yield
    except OSError as error:  # of requests, which TRL raises
        if "vLLM server" in str(error):
            raise CalibrantError(f"{reason(error)} Or give --vllm-server-host and --vllm-server-port.") from None
        raise


def policy_of(settings: TrainSettings) -> str | PreTrainedModel:
    """The policy as TRL takes it: an adapter with its base, anything else as a path or a hub name, which TRL loads."""
    name = locate(settings.model)
    if is_adapter(path := Path(name)):
        return load_policy(settings.model, replace(settings, dtype=weights_dtype(settings, "float32")))
    return str(path.absolute()) if path.exists() else name  # a new adapter keeps it as the path of its base


def training_arguments(run: Run, settings: TrainSettings, task: Task) -> CalibratedGRPOConfig:
    """Settings as TRL's configuration; a setting that has the name of one of its fields becomes that field."""
    micro_batch, accumulation = batch_sizes(settings, processes().num_processes)
    passes = settings.num_iterations  # optimizer steps over the same rollouts; no checkpoint is saved between them
    same_name = {f.name for f in fields(CalibratedGRPOConfig)} & {f.name for f in fields(settings)}
    resolved: dict[str, Any] = {name: getattr(settings, name) for name in same_name} | {
        "max_completion_length": settings.max_completion_length or task.max_completion_length,
        "meaning": settings.meaning or task.meaning,
        "reward_range": list(task.reward_range),
        "reward_weights": list(task.rewards.weights) if task.rewards else None,
        "task_reward": task.rewards.read.name if task.rewards else None,
    }
    return CalibratedGRPOConfig(
        output_dir=str(run.checkpoints),
        rollouts_dir=str(run.rollouts),
        **resolved,
        max_steps=settings.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        num_generations=settings.rollouts,
        lr_scheduler_type=settings.schedule,
        use_cpu=not torch.accelerator.is_available(),
        save_steps=math.ceil(settings.save_every / passes) * passes,
        save_total_limit=2,
        logging_steps=1,
        disable_tqdm=True,
        run_name=run.path.name,
        model_init_kwargs={
            "use_safetensors": True,
            "dtype": weights_dtype(settings, "float32"),
            "attn_implementation": settings.attn_implementation,
        },
        dataloader_pin_memory=False,
    )


def batch_sizes(settings: TrainSettings, num_processes: int) -> tuple[int, int]:
    """TRL's `per_device_train_batch_size`, in rollouts, and `gradient_accumulation_steps`.

    The batch size is the largest one up to `micro_batch` (unlimited when None) that divides the rollouts of a process.
    """
    rollouts = settings.prompts_per_step * settings.rollouts
    if rollouts >= 2**31:
        raise CalibrantError(f"prompts_per_step x rollouts = {rollouts} is more than one step can hold; lower them")
    if rollouts % num_processes:
        raise CalibrantError(
            f"prompts_per_step x rollouts = {rollouts} is not divisible by the number of processes, {num_processes}; "
            "change one of the three"
        )
    per_process = rollouts // num_processes
    limit = min(per_process, settings.micro_batch or per_process)
    micro_batch = next(size for size in range(limit, 0, -1) if per_process % size == 0)
    return micro_batch, per_process // micro_batch
