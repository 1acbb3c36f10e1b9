"""`calibrant train`: from settings to a complete run directory.

After Ctrl-C, training raises `Stopped` once a checkpoint is written.
"""

import logging
from dataclasses import replace
from pathlib import Path

from calibrant.errors import CalibrantError, Stopped
from calibrant.evaluate.evaluation import evaluate
from calibrant.files import write_json
from calibrant.policy.models import load_policy, merged_policy
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


def start(settings: TrainSettings, path: Path) -> Run:
    """Trains a new run in an empty directory; bad settings, data or models are refused before anything is written."""
    prepared = prepare(settings)
    with owned(path):
        return finish(on_main(lambda: create(path, settings)), prepared)


def resume(run: Run, settings: TrainSettings) -> Run:
    """Adds the missing parts of a run; training continues from the last intact checkpoint.

    On one machine the parameters end bit-equal to those of an uninterrupted run.
    """
    with owned(run.path):
        parts = on_main(lambda: missing(run, settings))
        if not parts:
            log.warning("the run '%s' is complete after %d steps; nothing is missing", run.path, settings.steps)
            return run
        return finish(run, prepare(settings) if parts != [run.report.name] else None)


def missing(run: Run, settings: TrainSettings) -> list[str]:
    """The missing parts of a run: evaluations (`before`, `after`), `model` and `report.html`, in this order."""
    evaluations = [when for when in ("before", "after") if settings.evaluation and when not in run.evaluations()]
    return evaluations + [path.name for path in (run.model, run.report) if not path.exists()]


def finish(run: Run, prepared: Prepared | None) -> Run:
    """Runs the missing parts: evaluation, training, evaluation, report; without `prepared`, the report alone."""
    main = processes().is_main_process
    if prepared is not None:
        if main:
            evaluate_into(run, "before", prepared.settings.model, prepared)
        if not run.model.exists():
            train(run, prepared)
        if main:
            evaluate_into(run, "after", str(run.model), prepared)
    if main:
        write_report(run.path)
    return run


def train(run: Run, prepared: Prepared) -> None:
    """Trains from the last intact checkpoint and publishes the policy in `model/`."""
    steps, method = prepared.settings.steps, prepared.settings.method
    again = f"resume with: calibrant train --resume {run.path}"

    def begin() -> Path | None:
        checkpoint = last_checkpoint(run, method)
        rewind(run, checkpoint)
        count, now = len(list(checkpoint.glob("rng_state*.pth"))) if checkpoint else 0, processes().num_processes
        if checkpoint and count != now:
            log.warning("'%s' was written by %d processes, not %d: random states start anew", checkpoint, count, now)
        return checkpoint

    def end() -> None:
        checkpoint = last_checkpoint(run, method)
        if checkpoint is None or step_of(checkpoint) < steps:
            raise CalibrantError(f"the last checkpoint is damaged; {again}")
        merged = merged_policy(str(checkpoint), prepared.settings) if prepared.settings.merge else None
        publish(checkpoint, run.model, merged)

    checkpoint = on_main(begin)
    if checkpoint is None or step_of(checkpoint) < steps:
        with GracefulStop() as stop:
            trainer = build_trainer(run, prepared, extra_callbacks=[stop])
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if (step := trainer.state.global_step) < steps:
            raise Stopped(f"stopped at step {step} of {steps}; {again}")
    on_main(end)


def evaluate_into(run: Run, when: str, model: str, prepared: Prepared) -> None:
    """Evaluates a policy on the unseen split into `evaluation.json` and a rollout file, unless that exists."""
    settings, task = prepared.settings, prepared.task
    if not settings.evaluation or when in run.evaluations():
        return
    merged = settings.merge and when == "after"  # is not quantised
    options = replace(settings, load_in_4bit=settings.load_in_4bit and not merged)
    results, rows = evaluate(
        load_policy(model, options), prepared.tokenizer, task,
        prepared.evaluation, samples=settings.eval_samples, temperature=settings.temperature,
        max_completion_length=settings.max_completion_length,
    )  # fmt: skip
    write_rollouts(run.rollouts / f"evaluation-{when}.parquet", rows)
    write_json(run.evaluation, run.evaluations() | {when: results | {"split": task.splits[-1]}})
