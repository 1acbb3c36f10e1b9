"""`calibrant analyze`: measures every group and writes it to the directory of the analysis."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.analyze.groups import Group, given_group, group_seed, groups_of_file, sampled_group
from calibrant.analyze.measure import MeasureContext, measure_group
from calibrant.analyze.settings import QUERIES, AnalyzeSettings
from calibrant.analyze.store import begin, check_path, repair, weights_fingerprint
from calibrant.errors import CalibrantError
from calibrant.files import locked, sha256
from calibrant.gradients.model import select
from calibrant.policy.adapters import check_trainable, with_new_adapter
from calibrant.policy.models import load_model, quiet_loading
from calibrant.report.analysis_files import Analysis
from calibrant.tasks import chosen_task, training_task
from calibrant.tasks.base import Row, Task
from calibrant.tasks.prompts import truncate_for_policy
from calibrant.tasks.rewards import require_range, require_reward
from calibrant.text.embed import Embedder
from calibrant.text.entail import EntailmentJudge
from calibrant.text.inputs import Readers

Source = Callable[[int], Group]  # index of a group -> its rollouts


def collect(settings: AnalyzeSettings, path: Path, *, progress: bool = True) -> Analysis:
    """Measures every group that is not measured yet.

    Each group is sampled with its own seed, measured alone and appended as one line, so that an interrupted analysis
    resumes with the same result as an uninterrupted one. `path` is new or holds an analysis of the same options, which
    is resumed; options are checked before anything is written.
    """
    quiet_loading()
    check_path(path, settings)
    task = chosen_task(settings)
    if not settings.from_rollouts:
        require_reward(task)
        require_range(task, "analyze")
    frames = groups_of_file(settings.from_rollouts) if settings.from_rollouts else None
    rows = [] if frames is not None else _rows(settings, task)
    model, tokenizer = load_model(settings.model, settings)
    if settings.use_peft:
        model = with_new_adapter(model, settings, settings.seed)
    if settings.parameters is None:
        check_trainable(settings, model)
    model.eval()
    select(model, settings.parameters)
    source, ids = _source(settings, task, model, tokenizer, frames, rows)
    context = measure_context(settings, task, model)
    identity = {"weights": weights_fingerprint(model)}
    if settings.from_rollouts:
        identity["rollouts"] = sha256(settings.from_rollouts)
    with locked(path):
        analysis = begin(path, settings, identity)
        done = repair(analysis)
        _check_prompts(analysis, ids)
        todo, begun = range(done, len(ids)), min(done, len(ids))
        for index in tqdm(todo, "analyze", len(ids), initial=begun, unit="group", disable=not progress):
            line, rollouts = measure_group(index, source(index), context)
            analysis.append(line, None if frames is not None else rollouts)
    return analysis


def measure_context(settings: AnalyzeSettings, task: Task, model: PreTrainedModel) -> MeasureContext:
    """The context that groups are measured in. Entailment has no cache, so that a group depends on no other."""
    entailment = None
    if settings.entailment_model:
        entailment = EntailmentJudge(settings.entailment_model, dtype=settings.entailment_dtype, cache_size=0)
    readers = Readers(Embedder(settings.embedding_model), task.clusters, None, task.correct_batch)
    return MeasureContext(model, task, readers, entailment, settings)


def _rows(settings: AnalyzeSettings, task: Task) -> list[Row]:
    """The first questions of the split, by default the training split."""
    source = task if settings.split in task.splits else training_task(task)
    folder = Path(settings.data_dir) if settings.data_dir else None
    count = settings.queries or QUERIES
    return source.load(settings.split or source.splits[0], count, settings.seed, data_dir=folder)[:count]


def _source(
    settings: AnalyzeSettings,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    frames: list[pd.DataFrame] | None,
    rows: list[Row],
) -> tuple[Source, list[str]]:
    """The source of groups, and the prompt id of each."""
    length = settings.max_completion_length or task.max_completion_length
    if frames is not None:
        chosen, limit = frames[: settings.queries], min(settings.max_prompt_length, tokenizer.model_max_length)
        ids = [str(frame["prompt_id"].iloc[0]) for frame in chosen]
        return lambda index: given_group(chosen[index], tokenizer, limit, model.device), ids
    fitted = truncate_for_policy(rows, tokenizer, settings.max_prompt_length, length)

    def sample(index: int) -> Group:
        return sampled_group(
            model,
            tokenizer,
            task,
            fitted[index],
            samples=settings.rollouts,
            temperature=settings.temperature,
            length=length,
            seed=group_seed(settings.seed, index),
        )

    return sample, [row["prompt_id"] for row in fitted]


def _check_prompts(analysis: Analysis, ids: list[str]) -> None:
    with contextlib.closing(analysis.lines(len(ids))) as lines:
        for line in lines:
            if line["prompt_id"] != ids[line["index"]]:
                raise CalibrantError(
                    f"'{analysis.path}' has the prompt '{line['prompt_id']}' in line {line['index'] + 1}, where the "
                    f"data now have '{ids[line['index']]}'; give another --out"
                )
