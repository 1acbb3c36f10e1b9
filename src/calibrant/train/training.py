"""`calibrant train`: from settings to a finished run directory."""

import logging
from pathlib import Path

from transformers import PreTrainedModel

from calibrant.errors import CalibrantError
from calibrant.evaluate.evaluation import evaluate
from calibrant.files import write_json
from calibrant.policy.models import load_policy
from calibrant.report import write_report
from calibrant.rollouts import write_rollouts
from calibrant.train.callbacks import GracefulStop
from calibrant.train.checkpoints import last_checkpoint, publish, rewind, step_of
from calibrant.train.prepare import Prepared, prepare
from calibrant.train.processes import on_main, owned, processes
from calibrant.train.runs import Run, create
from calibrant.train.settings import TrainSettings
from calibrant.train.trainer import build_trainer

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Training was asked to stop and has left a checkpoint."""


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


def evaluate_into(run: Run, when: str, policy: PreTrainedModel, prepared: Prepared) -> None:
    """Evaluates a policy on the unseen split into `evaluation.json` and a rollout file."""
    settings, task = prepared.settings, prepared.task
    results, rows = evaluate(
        policy, prepared.tokenizer, task, prepared.evaluation, samples=settings.eval_samples,
        temperature=settings.temperature, max_completion_length=settings.max_completion_length,
    )  # fmt: skip
    write_rollouts(run.rollouts / f"evaluation-{when}.parquet", rows)
    write_json(run.evaluation, run.evaluations() | {when: results | {"split": task.splits[-1]}})
