"""The steps of `calibrant score`: from settings to scored rollouts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS, Method, resolve_method
from calibrant.policy.models import quiet_loading
from calibrant.rollouts import RolloutGroups, read_rollouts, write_rollouts
from calibrant.score.methods import score, score_all, with_scores
from calibrant.score.settings import ScoreSettings
from calibrant.scorer import Scored, named_inputs, options_of
from calibrant.tasks import resolve as resolve_task
from calibrant.tasks.base import Task
from calibrant.text.inputs import Readers, by_key
from calibrant.text.metrics import normalise_answer
from calibrant.text.readers import load_readers


@dataclass(frozen=True)
class ScoredFile:
    """The rollouts of a file with what methods made of them."""

    groups: RolloutGroups
    scored: Mapping[str, Scored]  # by method
    refused: Mapping[str, str]  # method -> the reason
    reward_range: tuple[float, float]


def check(settings: ScoreSettings) -> None:
    """Raises CalibrantError for options that contradict each other, before anything is read."""
    out = Path(settings.out or ".parquet")
    if not out.name.endswith((".parquet", ".jsonl")) or out.is_dir():
        raise CalibrantError(f"--out '{out}' is no name of a rollout file; end it in .parquet or .jsonl")
    if settings.method is None and (settings.alpha is not None or settings.mean_one or settings.method_options):
        raise CalibrantError("--alpha, --mean-one and --method-options belong to one method; name it with --method")


def score_file(settings: ScoreSettings) -> ScoredFile:
    """Applies one method, or every method whose inputs the file has, and writes `settings.out`.

    Raises:
        CalibrantError: the file has no reward, or an input of the one method is missing.
    """
    check(settings)
    quiet_loading()
    methods = {settings.method: resolve_method(settings.method)} if settings.method else METHODS
    task = resolve_task(settings.task) if settings.task else None
    meaning = settings.meaning or (task.meaning if task else "answer")
    reward_range = settings.reward_range or (task.reward_range if task else (0.0, 2.0))
    settings = replace(settings, reward_range=reward_range)
    extract = task.extract if task else str.strip
    groups = RolloutGroups(read_rollouts(settings.file), extract, settings.file)
    if not groups.rewards.isfinite().any():
        raise CalibrantError(f"'{settings.file}' has no finite reward, and no 'correct' instead; fill one of them in")
    readers = _readers(settings, task, methods)
    refused: dict[str, str] = {}
    if settings.method:
        options = options_of(methods[settings.method], settings)
        scored = {settings.method: score(groups, methods[settings.method], options, readers, meaning)}
    else:
        scored, refused = score_all(groups, list(methods), settings, readers, meaning)
    if settings.out:
        write_rollouts(settings.out, with_scores(groups, scored))
    return ScoredFile(groups, scored, refused, reward_range)


def _readers(settings: ScoreSettings, task: Task | None, methods: Mapping[str, Method]) -> Readers:
    names = {name for method in methods.values() for name in named_inputs(method)}
    cluster = task.clusters if task else by_key(normalise_answer)
    return load_readers(names, settings, cluster, task.correct_batch if task else None)
