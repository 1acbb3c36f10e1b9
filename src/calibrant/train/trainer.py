"""The TRL trainer of a run."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback

from calibrant.errors import CalibrantError
from calibrant.policy.models import locate
from calibrant.tasks.base import Task
from calibrant.tasks.prompts import prompt_for
from calibrant.train.callbacks import CheckpointMarker, MetricsWriter, Progress
from calibrant.train.prepare import Prepared
from calibrant.train.processes import processes
from calibrant.train.runs import Run
from calibrant.train.settings import TrainSettings
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer
from calibrant.trl.config import OWN_FIELDS


def build_trainer(run: Run, prepared: Prepared, *, extra_callbacks: Sequence[Any] = ()) -> CalibratedGRPOTrainer:
    """The trainer of a run, with its data, rewards and callbacks."""
    settings, task, tokenizer = prepared.settings, prepared.task, prepared.tokenizer
    columns = [
        {"prompt_id": row["prompt_id"], "prompt": prompt_for(row, tokenizer), "references": row["references"]}
        for row in prepared.training
    ]
    trainer = CalibratedGRPOTrainer(
        locate(settings.model),
        reward_function(task),
        training_arguments(run, settings, task),
        Dataset.from_list(columns),
        processing_class=tokenizer,
        extract_answer=task.extract,
        cluster=task.clusters,
        judge=task.correct_batch,
        callbacks=[MetricsWriter(run), CheckpointMarker(run, settings.method), *extra_callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress())
    return trainer


def reward_function(task: Task) -> Any:
    """A task's reward as a TRL reward function."""

    def task_reward(completions: list[Any], references: list[list[str]], **_: Any) -> list[float | None]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return task.reward_batch([task.extract(text) for text in texts], references)

    return task_reward


def training_arguments(run: Run, settings: TrainSettings, task: Task) -> CalibratedGRPOConfig:
    """Settings as TRL's configuration."""
    between = settings.num_iterations  # a checkpoint never falls between two passes over the same rollouts
    micro, passes = batches(settings, processes().num_processes)
    shared = {f.name: getattr(settings, f.name) for f in OWN_FIELDS if hasattr(settings, f.name)}
    shared["meaning"] = settings.meaning or task.meaning
    shared["reward_range"] = list(settings.reward_range or task.reward_range)
    return CalibratedGRPOConfig(
        output_dir=str(run.checkpoints),
        rollouts_dir=str(run.rollouts),
        **shared,
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=passes,
        num_generations=settings.rollouts,
        num_iterations=settings.num_iterations,
        max_completion_length=settings.max_completion_length or task.max_completion_length,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        beta=settings.beta,
        loss_type=settings.loss_type,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=settings.bf16,
        use_cpu=not torch.accelerator.is_available(),
        seed=settings.seed,
        save_steps=-(-settings.save_every // between) * between,
        save_total_limit=2,
        logging_steps=1,
        disable_tqdm=True,
        report_to=settings.report_to,
        run_name=run.path.name,
        trust_remote_code=settings.trust_remote_code,
        model_init_kwargs={"use_safetensors": True, "dtype": "float32"},
        dataloader_pin_memory=False,
    )


def batches(settings: TrainSettings, count: int) -> tuple[int, int]:
    """Rollouts in a forward pass of one process, at most `micro_batch`, and passes in a step.

    Raises:
        CalibrantError: the rollouts of a step do not divide among the processes.
    """
    rows = settings.prompts_per_step * settings.rollouts
    if rows % count:
        raise CalibrantError(
            f"prompts_per_step x rollouts = {rows} does not divide among {count} processes; change one of them"
        )
    share = rows // count
    micro = next(n for n in range(min(share, settings.micro_batch or share), 0, -1) if share % n == 0)
    return micro, share // micro
