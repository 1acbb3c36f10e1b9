"""The steps of `calibrant evaluate`: from settings to results, sampled answers and files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from calibrant.errors import CalibrantError
from calibrant.evaluate.evaluation import evaluate, evaluate_rollouts
from calibrant.evaluate.settings import EvaluateSettings
from calibrant.files import write_json
from calibrant.policy.models import load_model, quiet_loading
from calibrant.rollouts import group_keys, read_rollouts, write_rollouts
from calibrant.tasks import resolve
from calibrant.tasks.base import Task
from calibrant.tasks.prompts import fit_to


class Evaluation(NamedTuple):
    """One evaluated model, or rollout file."""

    results: dict[str, Any]  # the content of evaluation.json
    answers: list[dict[str, Any]]  # the rows of rollouts.parquet


def check_out(settings: EvaluateSettings) -> None:
    """Raises CalibrantError for an `out` that cannot take the results, before anything is computed."""
    if settings.out is None:
        return
    out, names = Path(settings.out), [Path(name).name for name in settings.models]
    if out.exists() and not out.is_dir():
        raise CalibrantError(f"'{out}' is a file; give --out a folder")
    if (out / "config.yaml").exists():
        raise CalibrantError(f"'{out}' holds a run or an analysis; give --out a folder of its own")
    if len(set(names)) < len(names):
        raise CalibrantError(f"--out has one folder '{names[0]}' for both models; evaluate them one at a time")


def evaluations(settings: EvaluateSettings) -> dict[str, Evaluation]:
    """Model, or rollout file -> its evaluation."""
    check_out(settings)
    task = resolve(settings.task)
    if settings.from_rollouts:
        return {settings.from_rollouts: _of_file(settings.from_rollouts, task, settings.seed)}
    quiet_loading()
    folder = Path(settings.data_dir) if settings.data_dir else None
    rows = task.load(task.splits[-1], settings.prompts, 0, data_dir=folder)
    length = settings.max_completion_length or task.max_completion_length
    evaluated = {}
    for name in settings.models:
        policy, tokenizer = load_model(name, trust_remote_code=settings.trust_remote_code)
        results, answers = evaluate(
            policy, tokenizer, task, fit_to(rows, tokenizer, settings.max_prompt_length, length),
            samples=settings.samples, temperature=settings.temperature, max_completion_length=length,
            seed=settings.seed,
        )  # fmt: skip
        evaluated[name] = Evaluation(results | {"split": task.splits[-1], "model": name}, answers)
    return evaluated


def _of_file(path: str, task: Task, seed: int) -> Evaluation:
    judged_by = ("references", "correct")
    frame = read_rollouts(path, judged_by)
    if all(frame[name].isna().all() for name in judged_by if name in frame):
        raise CalibrantError(f"'{path}' has no value in references or correct; fill one of them in")
    group_keys(frame, path)
    return Evaluation(*evaluate_rollouts(frame, task, seed=seed))


def write(out: str, evaluated: Mapping[str, Evaluation]) -> list[Path]:
    """Writes evaluation.json and rollouts.parquet into a folder; with two models, into one subfolder each.

    Returns:
        The folders written.
    """
    folders = {name: Path(out) / Path(name).name if len(evaluated) > 1 else Path(out) for name in evaluated}
    for name, folder in folders.items():
        write_rollouts(folder / "rollouts.parquet", evaluated[name].answers)
        write_json(folder / "evaluation.json", evaluated[name].results)
    return list(folders.values())
