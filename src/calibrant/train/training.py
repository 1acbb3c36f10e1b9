"""`calibrant train`: from settings to a finished run directory."""

from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from calibrant.errors import CalibrantError
from calibrant.evaluate.evaluation import evaluate
from calibrant.files import write_json
from calibrant.methods import resolve as resolve_method
from calibrant.policy.models import check_policy, load_policy, load_tokenizer, locate, quiet_loading
from calibrant.report import write_report
from calibrant.rollouts import write_rollouts
from calibrant.scorer import dry_run, named_inputs, options_of
from calibrant.tasks import resolve as resolve_task
from calibrant.tasks import training_task
from calibrant.tasks.base import Row, Task
from calibrant.tasks.prompts import fit_to, prompt_for
from calibrant.text.embed import Embedder
from calibrant.text.entail import EntailmentJudge
from calibrant.train.callbacks import CheckpointMarker, GracefulStop, MetricsWriter, Progress
from calibrant.train.runs import Run, create, last_checkpoint, publish, rewind, step_of
from calibrant.train.settings import TrainSettings
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer
from calibrant.trl.config import OWN_FIELDS

WAIT = timedelta(hours=12)  # the other processes wait while the first one evaluates


class Stopped(Exception):
    """Training was asked to stop and has left a checkpoint."""


def start(settings: TrainSettings, path: Path) -> Run:
    """Trains a new run in a directory that holds nothing yet.

    Raises:
        CalibrantError: bad settings, found before anything is written, or a failing reward.
        Stopped: after Ctrl-C.
    """
    check(settings)
    state = processes()
    if state.is_main_process:
        create(path, settings)
    state.wait_for_everyone()
    return finish(Run(path), settings)


def resume(run: Run, settings: TrainSettings) -> Run:
    """Goes on from the last complete checkpoint of a run, or from the start where there is none.

    On one machine the parameters end bit-equal to those of a run that was never interrupted.

    Raises:
        CalibrantError: the run has ended already, or its checkpoint is of another method.
        Stopped: after Ctrl-C.
    """
    if run.model.exists() and run.evaluations().keys() >= ({"after"} if settings.evaluation else set()):
        raise CalibrantError(f"the run '{run.path}' has ended after {settings.steps} steps; start a new one with --out")
    check(settings)
    return finish(run, settings)


def processes() -> PartialState:
    """The processes of this run; on a machine without an accelerator they talk over the CPU."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT)


def part() -> None:
    """Ends the talk between processes, once all of them are here.

    Without it PyTorch's own threads may outlive the interpreter and abort a process that has done its work.
    """
    state = processes()
    state.wait_for_everyone()
    state.destroy_process_group()


def check(settings: TrainSettings) -> None:
    """Raises CalibrantError for what could only fail later: before anything is written or computed."""
    quiet_loading()
    task = resolve_task(settings.task)
    method = resolve_method(settings.method)
    dry_run(method, options_of(method, settings))
    load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)
    check_policy(settings.model, trust_remote_code=settings.trust_remote_code)
    named = set(named_inputs(method))
    if "embeddings" in named:
        Embedder(settings.embedding_model)
    if settings.entailment_model and named & {"clusters", "entailment"}:
        EntailmentJudge(settings.entailment_model, dtype=settings.entailment_dtype)
    if settings.report_to != "none" and find_spec(settings.report_to) is None:
        raise CalibrantError(
            f"option 'report_to' is '{settings.report_to}', which is not installed; pip install {settings.report_to}"
        )
    if settings.evaluation:
        evaluation_rows(settings, task)
    if (rows := len(training_rows(settings, task))) < settings.prompts_per_step:
        raise CalibrantError(
            f"there are {rows} questions to train on, fewer than the {settings.prompts_per_step} of a step; lower "
            "--prompts-per-step, or give more"
        )


def finish(run: Run, settings: TrainSettings) -> Run:
    """Does what is left of a run: evaluation, training, evaluation, report."""
    task = resolve_task(settings.task)
    main = processes().is_main_process
    if main and settings.evaluation and "before" not in run.evaluations():
        policy = load_policy(settings.model, trust_remote_code=settings.trust_remote_code)
        evaluate_into(run, "before", policy, settings, task)
    if not run.model.exists():
        train(run, settings, task)
    if main and settings.evaluation and "after" not in run.evaluations():
        evaluate_into(run, "after", load_policy(str(run.model)), settings, task)
    if main:
        write_report(run.path)
    return run


def train(run: Run, settings: TrainSettings, task: Task) -> None:
    """Trains from the last complete checkpoint and puts the policy in `model/`, whole or not at all."""
    checkpoint, state = last_checkpoint(run, settings.method), processes()
    if state.is_main_process:
        rewind(run, checkpoint)
    state.wait_for_everyone()
    if checkpoint is None or step_of(checkpoint) < settings.steps:
        _train_from(checkpoint, run, settings, task)
    checkpoint = last_checkpoint(run, settings.method)
    if state.is_main_process and checkpoint:
        publish(checkpoint, run.model)
    state.wait_for_everyone()


def _train_from(checkpoint: Path | None, run: Run, settings: TrainSettings, task: Task) -> None:
    with GracefulStop() as stop:
        trainer = build_trainer(run, settings, task, extra_callbacks=[stop])
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step = trainer.state.global_step
    if step < settings.steps:
        raise Stopped(f"stopped at step {step} of {settings.steps}; go on with: calibrant train --resume {run.path}")


def build_trainer(
    run: Run, settings: TrainSettings, task: Task, *, extra_callbacks: Sequence[Any] = ()
) -> CalibratedGRPOTrainer:
    """The trainer of a run, with its data, rewards and callbacks."""
    tokenizer = load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)
    trainer = CalibratedGRPOTrainer(
        locate(settings.model),
        reward_function(task),
        training_arguments(run, settings, task),
        training_data(settings, task, tokenizer),
        processing_class=tokenizer,
        extract_answer=task.extract,
        cluster=task.clusters,
        judge=task.correct_batch,
        callbacks=[MetricsWriter(run), CheckpointMarker(run, settings.method), *extra_callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress())
    return trainer


def training_data(settings: TrainSettings, task: Task, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The training split as TRL reads it: prompt, references, prompt_id."""
    columns = [
        {"prompt_id": row["prompt_id"], "prompt": prompt_for(row, tokenizer), "references": row["references"]}
        for row in fitted(training_rows(settings, task), tokenizer, settings, task)
    ]
    return Dataset.from_list(columns)


@lru_cache(maxsize=2)
def load_rows(task: str, split: str, size: int | None, seed: int, data_dir: str | None) -> list[Row]:
    """Rows of a task, read once: what checks them and what uses them get the same list."""
    return resolve_task(task).load(split, size, seed, data_dir=Path(data_dir) if data_dir else None)


def fitted(rows: list[Row], tokenizer: PreTrainedTokenizerBase, settings: TrainSettings, task: Task) -> list[Row]:
    """Rows whose prompts are no longer than allowed, and leave room for an answer; says how many were cut."""
    return fit_to(
        rows, tokenizer, settings.max_prompt_length, settings.max_completion_length or task.max_completion_length
    )


def training_rows(settings: TrainSettings, task: Task) -> list[Row]:
    """The questions that train a policy for a task."""
    source = training_task(task)
    return load_rows(source.name, source.splits[0], settings.train_rows, settings.seed, settings.data_dir)


def evaluation_rows(settings: TrainSettings, task: Task) -> list[Row]:
    """The questions of an evaluation: the same for every seed of training."""
    return load_rows(task.name, task.splits[-1], settings.eval_prompts, 0, settings.data_dir)


def reward_function(task: Task) -> Any:
    """A task's reward as a TRL reward function."""

    def task_reward(completions: list[Any], references: list[list[str]], **_: Any) -> list[float | None]:
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return task.reward_batch([task.extract(text) for text in texts], references)

    return task_reward


def training_arguments(run: Run, settings: TrainSettings, task: Task) -> CalibratedGRPOConfig:
    """Settings as TRL's configuration."""
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
        save_steps=_aligned(settings),
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


def _aligned(settings: TrainSettings) -> int:
    """`save_every`, rounded up so that a checkpoint never falls between two passes over the same rollouts."""
    return -(-settings.save_every // settings.num_iterations) * settings.num_iterations


def evaluate_into(run: Run, when: str, policy: PreTrainedModel, settings: TrainSettings, task: Task) -> None:
    """Evaluates a policy on the unseen split into `evaluation.json` and a rollout file."""
    tokenizer = load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)
    results, rows = evaluate(
        policy, tokenizer, task, fitted(evaluation_rows(settings, task), tokenizer, settings, task),
        samples=settings.eval_samples,
        temperature=settings.temperature, max_completion_length=settings.max_completion_length,
    )  # fmt: skip
    write_rollouts(run.rollouts / f"evaluation-{when}.parquet", rows)
    write_json(run.evaluation, run.evaluations() | {when: results | {"split": task.splits[-1]}})
