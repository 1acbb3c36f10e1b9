"""The steps of `calibrant evaluate`: from settings to results, sampled answers and files."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from calibrant.errors import CalibrantError
from calibrant.evaluate.evaluation import Table, differences, evaluate, evaluate_rollouts
from calibrant.evaluate.settings import EvaluateSettings
from calibrant.files import JsonObject, write_json
from calibrant.policy.models import load_model, quiet_loading
from calibrant.rollouts import read_rollouts, write_rollouts
from calibrant.tasks import chosen_task
from calibrant.tasks.files import Record
from calibrant.tasks.prompts import truncate_for_policy
from calibrant.tasks.rewards import require_reward


class Evaluation(NamedTuple):
    """One evaluated model, or rollout file."""

    results: JsonObject  # the content of evaluation.json
    answers: list[Record]  # the rows of rollouts.parquet


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
        return {file: Evaluation(*evaluate_rollouts(frame, task, seed=settings.seed, path=file))}
    require_reward(task)
    quiet_loading()
    folder = Path(settings.data_dir) if settings.data_dir else None
    rows = task.load(task.splits[-1], settings.prompts, 0, data_dir=folder)
    length = settings.max_completion_length or task.max_completion_length
    evaluated = {}
    for name in settings.models:
        policy, tokenizer = load_model(name, settings)
        results, answers = evaluate(
            policy, tokenizer, task, truncate_for_policy(rows, tokenizer, settings.max_prompt_length, length),
            samples=settings.samples, temperature=settings.temperature, max_completion_length=length,
            seed=settings.seed,
        )  # fmt: skip
        evaluated[name] = Evaluation(results | {"split": task.splits[-1], "model": name}, answers)
    return evaluated


def change(settings: EvaluateSettings, evaluated: Mapping[str, Evaluation]) -> Table:
    """The second model's metrics minus the first one's on the same prompts, with paired intervals."""
    before, after = evaluated.values()
    return differences(chosen_task(settings), before.answers, after.answers, seed=settings.seed)


def write(out: str, evaluated: Mapping[str, Evaluation]) -> list[Path]:
    """Writes evaluation.json and rollouts.parquet into a folder, of two models into one subfolder each; returns it."""
    folders = {name: Path(out) / Path(name).name if len(evaluated) > 1 else Path(out) for name in evaluated}
    for name, folder in folders.items():
        write_rollouts(folder / "rollouts.parquet", evaluated[name].answers)
        write_json(folder / "evaluation.json", evaluated[name].results)
    return list(folders.values())
