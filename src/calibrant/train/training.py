"""`calibrant train`: from settings to a finished run directory."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from calibrant.errors import CalibrantError
from calibrant.evaluate.evaluation import evaluate
from calibrant.files import locked, write_json
from calibrant.methods import resolve_method
from calibrant.policy.models import check_model, check_weights, load_policy, locate, quiet_loading
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
from calibrant.train.checkpoints import last_checkpoint, publish, rewind, step_of
from calibrant.train.runs import Run, create
from calibrant.train.settings import TrainSettings
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer
from calibrant.trl.config import OWN_FIELDS

log = logging.getLogger(__name__)

T = TypeVar("T")

WAIT = timedelta(hours=12)  # the other processes wait while the first one evaluates


class Stopped(Exception):
    """Training was asked to stop and has left a checkpoint."""


class Prepared(NamedTuple):
    """What a run reads, checked before anything is written."""

    settings: TrainSettings
    task: Task
    tokenizer: PreTrainedTokenizerBase
    training: list[Row]
    evaluation: list[Row]
    """The same for every seed of training; empty without an evaluation."""


def start(settings: TrainSettings, path: Path) -> Run:
    """Trains a new run in a directory that holds nothing yet.

    Raises:
        CalibrantError: bad settings, data or model, found before anything is written, or a failing reward.
        Stopped: after Ctrl-C.
    """
    prepared = prepare(settings)
    with owned(path):
        return finish(on_main(lambda: create(path, settings)), prepared)


def resume(run: Run, settings: TrainSettings) -> Run:
    """Adds what a run lacks, and says so if that is nothing; training goes on from the last whole checkpoint.

    On one machine the parameters end bit-equal to those of a run that was never interrupted.

    Raises:
        CalibrantError: no checkpoint is whole, or the last one is of another method.
        Stopped: after Ctrl-C.
    """
    with owned(run.path):
        lacking = on_main(lambda: missing(run, settings))
        if not lacking:
            log.warning("the run '%s' has ended after %d steps and lacks nothing", run.path, settings.steps)
            return run
        return finish(run, prepare(settings) if lacking != [run.report.name] else None)


def missing(run: Run, settings: TrainSettings) -> list[str]:
    """What is left to do of a run: parts of its evaluation, its model and its report, in this order."""
    evaluations = [when for when in ("before", "after") if settings.evaluation and when not in run.evaluations()]
    return evaluations + [path.name for path in (run.model, run.report) if not path.exists()]


def processes() -> PartialState:
    """The processes of this run; on a machine without an accelerator they talk over the CPU."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT)


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns in the main process, in all of them; where it fails, the others exit with status 2."""
    outcome: list[Any] = [False, None]
    error = None
    if processes().is_main_process:
        try:
            outcome = [True, work()]
        except Exception as caught:  # the others wait to hear of it
            error = caught
    broadcast_object_list(outcome)
    if error is not None:
        raise error
    if not outcome[0]:
        raise SystemExit(2)
    result: T = outcome[1]
    return result


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Context manager: the main process holds the lock of a run directory."""
    with contextlib.ExitStack() as stack:
        on_main(lambda: stack.enter_context(locked(path)))
        yield


def shutdown_processes() -> None:
    """Barrier, then destroys the process group.

    Without it PyTorch's own threads may outlive the interpreter and abort a process that has done its work.
    """
    state = processes()
    state.wait_for_everyone()
    state.destroy_process_group()


def prepare(settings: TrainSettings) -> Prepared:
    """Reads what a run needs, except weights.

    Raises:
        CalibrantError: for what could only fail later, before anything is written or computed.
    """
    quiet_loading()
    task = resolve_task(settings.task)
    method = resolve_method(settings.method)
    dry_run(method, options_of(method, settings))
    tokenizer = check_model(settings.model, trust_remote_code=settings.trust_remote_code)
    on_main(lambda: check_weights(settings.model))
    named = set(named_inputs(method))
    if "embeddings" in named:
        Embedder(settings.embedding_model)
    if settings.entailment_model and named & {"clusters", "entailment"}:
        EntailmentJudge(settings.entailment_model, dtype=settings.entailment_dtype)
    if settings.report_to != "none" and find_spec(settings.report_to) is None:
        raise CalibrantError(
            f"option 'report_to' is '{settings.report_to}', which is not installed; pip install {settings.report_to}"
        )
    evaluation, training = _rows(settings, task, tokenizer)
    if len(training) < settings.prompts_per_step:
        raise CalibrantError(
            f"there are {len(training)} questions to train on, fewer than the {settings.prompts_per_step} of a step; "
            "lower --prompts-per-step, or give more"
        )
    return Prepared(settings, task, tokenizer, training, evaluation)


def _rows(settings: TrainSettings, task: Task, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Row], list[Row]]:
    """Questions to evaluate on and to train on, whose prompts leave room for an answer."""
    source, folder = training_task(task), Path(settings.data_dir) if settings.data_dir else None
    rows = task.load(task.splits[-1], settings.eval_prompts, 0, data_dir=folder) if settings.evaluation else []
    length = settings.max_completion_length or task.max_completion_length
    evaluation = fit_to(rows, tokenizer, settings.max_prompt_length, length) if rows else []
    rows = source.load(source.splits[0], settings.train_rows, settings.seed, data_dir=folder)
    return evaluation, fit_to(rows, tokenizer, settings.max_prompt_length, length)


def finish(run: Run, prepared: Prepared | None) -> Run:
    """Does what is left of a run: evaluation, training, evaluation, report; the report alone without `prepared`."""
    main = processes().is_main_process
    if prepared is not None:
        settings = prepared.settings
        if main and settings.evaluation and "before" not in run.evaluations():
            policy = load_policy(settings.model, trust_remote_code=settings.trust_remote_code)
            evaluate_into(run, "before", policy, prepared)
        if not run.model.exists():
            train(run, prepared)
        if main and settings.evaluation and "after" not in run.evaluations():
            evaluate_into(run, "after", load_policy(str(run.model)), prepared)
    if main:
        write_report(run.path)
    return run


def train(run: Run, prepared: Prepared) -> None:
    """Trains from the last whole checkpoint and puts the policy in `model/`, whole or not at all.

    Raises:
        CalibrantError: no checkpoint is whole, or the last one is of another method.
        Stopped: after Ctrl-C.
    """
    steps, method = prepared.settings.steps, prepared.settings.method

    def begin() -> Path | None:
        checkpoint = last_checkpoint(run, method)
        rewind(run, checkpoint)
        count, now = len(list(checkpoint.glob("rng_state*.pth"))) if checkpoint else 0, processes().num_processes
        if checkpoint and count != now:
            log.warning("'%s' was written by %d processes, not %d: random numbers start anew", checkpoint, count, now)
        return checkpoint

    def end() -> None:
        checkpoint = last_checkpoint(run, method)
        if checkpoint is None or step_of(checkpoint) < steps:
            raise CalibrantError(f"the last checkpoint is not whole; go on with: calibrant train --resume {run.path}")
        publish(checkpoint, run.model)

    checkpoint = on_main(begin)
    if checkpoint is None or step_of(checkpoint) < steps:
        with GracefulStop() as stop:
            trainer = build_trainer(run, prepared, extra_callbacks=[stop])
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if (step := trainer.state.global_step) < steps:
            raise Stopped(f"stopped at step {step} of {steps}; go on with: calibrant train --resume {run.path}")
    on_main(end)


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


def evaluate_into(run: Run, when: str, policy: PreTrainedModel, prepared: Prepared) -> None:
    """Evaluates a policy on the unseen split into `evaluation.json` and a rollout file."""
    settings, task = prepared.settings, prepared.task
    results, rows = evaluate(
        policy, prepared.tokenizer, task, prepared.evaluation, samples=settings.eval_samples,
        temperature=settings.temperature, max_completion_length=settings.max_completion_length,
    )  # fmt: skip
    write_rollouts(run.rollouts / f"evaluation-{when}.parquet", rows)
    write_json(run.evaluation, run.evaluations() | {when: results | {"split": task.splits[-1]}})
