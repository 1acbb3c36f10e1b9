"""The steps of `calibrant score`: from settings to scored rollouts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS, read_inputs, resolve_method
from calibrant.policy.models import quiet_loading
from calibrant.rollouts import RolloutGroups, read_rollouts, write_rollouts
from calibrant.score.methods import score_all, with_scores
from calibrant.score.settings import ScoreSettings
from calibrant.scorer import Scored
from calibrant.tasks import resolve as resolve_task
from calibrant.text.inputs import by_key
from calibrant.text.metrics import normalise_answer
from calibrant.text.readers import load_readers


class ScoredFile(NamedTuple):
    """The result of scoring a file."""

    scored: Mapping[str, Scored]  # by method
    refused: Mapping[str, str]  # method -> the reason why it was not applied
    reward_range: tuple[float, float]


def check_options(settings: ScoreSettings) -> None:
    """Raises CalibrantError for options that contradict each other, before anything is read."""
    out = Path(settings.out or ".parquet")
    if not out.name.endswith((".parquet", ".jsonl")) or out.is_dir():
        raise CalibrantError(f"--out '{out}' is not the name of a rollout file; end it in .parquet or .jsonl")
    one = settings.mean_one or any(x is not None for x in (settings.alpha, settings.strength, settings.method_options))
    if settings.method is None and one:
        raise CalibrantError(
            "--alpha, --strength, --mean-one and --method-options belong to one method; name it with --method"
        )


def score_file(settings: ScoreSettings) -> ScoredFile:
    """Applies one method, or every method whose inputs the file has, and writes `settings.out`."""
    check_options(settings)
    quiet_loading()
    methods = {settings.method: resolve_method(settings.method)} if settings.method else METHODS
    task = resolve_task(settings.task) if settings.task else None
    meaning = settings.meaning or (task.meaning if task else "answer")
    reward_range = settings.reward_range or (task.reward_range if task and task.kind != "chat" else (0.0, 2.0))
    groups = RolloutGroups(read_rollouts(settings.file), task.extract if task else str.strip, settings.file)
    if not groups.rewards.isfinite().any():
        raise CalibrantError(f"'{settings.file}' has no finite value in reward or correct; fill one of them in")
    inputs = {name for method in methods.values() for name in read_inputs(method)}
    cluster = task.clusters if task else by_key(normalise_answer)
    readers = load_readers(inputs, settings, cluster, task.correct_batch if task else None)
    scored, refused = score_all(groups, methods, replace(settings, reward_range=reward_range), readers, meaning)
    if settings.method and refused:
        raise CalibrantError(refused[settings.method])
    if settings.out:
        write_rollouts(settings.out, with_scores(groups, scored))
    return ScoredFile(scored, refused, reward_range)
