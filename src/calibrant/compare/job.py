"""One job of a comparison, in a process of its own: a run is trained or resumed, and evaluated."""

import gc
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibrant.compare.evaluations import evaluate_into
from calibrant.compare.plan import Planned
from calibrant.evaluate.settings import EvaluateSettings
from calibrant.options import read
from calibrant.train import training
from calibrant.train.runs import Run
from calibrant.train.settings import TrainSettings


@dataclass(frozen=True)
class Job:
    """What a process is told to do, as JSON."""

    name: str
    run: str | None  # run directory; None: a model before training
    training: dict[str, Any] | None  # options of training; None: it is trained
    evaluations: dict[str, dict[str, Any]]  # folder -> options of the evaluation
    keep_checkpoints: bool


def job_of(planned: Planned, *, keep_checkpoints: bool) -> Job:
    """The job that does what is missing."""
    return Job(
        planned.name,
        str(planned.run.path) if planned.run else None,
        None if planned.trained else asdict(planned.training),
        {str(path): asdict(settings) for path, settings in planned.evaluations.items()},
        keep_checkpoints,
    )


def do(job: Job) -> None:
    """Trains, or resumes from the last checkpoint, and evaluates."""
    run = Run(Path(job.run)) if job.run else None
    if run and job.training:
        if run.config.exists():
            training.resume(run, run.settings())
        else:
            training.start(read(TrainSettings, job.training), run.path)
    if run and not job.keep_checkpoints:
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    gc.collect()  # what training held
    for folder, options in job.evaluations.items():
        evaluate_into(Path(folder), read(EvaluateSettings, options), run)
