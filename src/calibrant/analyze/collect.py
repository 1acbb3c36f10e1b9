"""`calibrant analyze`: measures every group and writes it to the directory of the analysis."""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.analyze.groups import Group, given_group, group_seed, groups_of_file, sampled_group, written_group
from calibrant.analyze.measure import MeasureContext, measure_group
from calibrant.analyze.parameters import Measured, measured_parameters
from calibrant.analyze.settings import QUERIES, AnalyzeSettings
from calibrant.analyze.store import begin, check_path, repair, weights_fingerprint
from calibrant.errors import CalibrantError
from calibrant.files import locked, sha256
from calibrant.policy.adapters import check_trainable, with_new_adapter
from calibrant.policy.generation import PromptAnswers, Sampling
from calibrant.policy.models import load_model, quiet_loading
from calibrant.policy.vllm import check_vllm, generate_with_vllm, vllm_engine
from calibrant.report.analysis_files import Analysis
from calibrant.tasks import chosen_task, training_task
from calibrant.tasks.base import Row, Task
from calibrant.tasks.prompts import prompt_for, truncate_for_policy
from calibrant.tasks.rewards import require_range, require_reward
from calibrant.text.embed import Embedder
from calibrant.text.entail import EntailmentJudge
from calibrant.text.inputs import Readers

Source = Callable[[int], Group]  # index of a group -> its rollouts

BLOCK = 32
"""Groups that vLLM samples at a time."""


def collect(settings: AnalyzeSettings, path: Path, *, progress: bool = True) -> Analysis:
    """Measures every group that is not measured yet.

    Each group is sampled with its own seed, measured alone and appended as one line, so that an interrupted analysis
    resumes with the same result as an uninterrupted one. `path` is new or holds an analysis of the same options, which
    is resumed; options are checked before anything is written.
    """
    quiet_loading()
    check_path(path, settings)
    if settings.engine == "vllm":
        check_vllm(settings)
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
    parameters = measured_parameters(model, settings.parameters)
    context = measure_context(settings, task, model, parameters)
    identity = {"weights": weights_fingerprint(model), "parameters": parameters.words}
    if settings.from_rollouts:
        identity["rollouts"] = sha256(settings.from_rollouts)
    with _source(settings, task, model, tokenizer, frames, rows) as (source, ids), locked(path):
        analysis = begin(path, settings, identity)
        done = repair(analysis)
        _check_prompts(analysis, ids)
        todo, begun = range(done, len(ids)), min(done, len(ids))
        for index in tqdm(todo, "analyze", len(ids), initial=begun, unit="group", disable=not progress):
            line, rollouts = measure_group(index, source(index), context)
            analysis.append(line, None if frames is not None else rollouts)
    return analysis


def measure_context(
    settings: AnalyzeSettings, task: Task, model: PreTrainedModel, parameters: Measured
) -> MeasureContext:
    """The context that groups are measured in. Entailment has no cache, so that a group depends on no other."""
    entailment = None
    if settings.entailment_model:
        entailment = EntailmentJudge(settings.entailment_model, dtype=settings.entailment_dtype, cache_size=0)
    readers = Readers(Embedder(settings.embedding_model), task.clusters, None, task.correct_batch)
    return MeasureContext(model, task, readers, entailment, settings, parameters)


def _rows(settings: AnalyzeSettings, task: Task) -> list[Row]:
    """The first questions of the split, by default the training split."""
    source = task if settings.split in task.splits else training_task(task)
    folder = Path(settings.data_dir) if settings.data_dir else None
    count = settings.queries or QUERIES
    return source.load(settings.split or source.splits[0], count, settings.seed, data_dir=folder)[:count]


@contextlib.contextmanager
def _source(
    settings: AnalyzeSettings,
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    frames: list[pd.DataFrame] | None,
    rows: list[Row],
) -> Iterator[tuple[Source, list[str]]]:
    """Context manager: the source of groups, and the prompt id of each."""
    length = settings.max_completion_length or task.max_completion_length
    if frames is not None:
        chosen, limit = frames[: settings.queries], min(settings.max_prompt_length, tokenizer.model_max_length)
        ids = [str(frame["prompt_id"].iloc[0]) for frame in chosen]
        yield lambda index: given_group(chosen[index], tokenizer, limit, model.device), ids
        return
    fitted = truncate_for_policy(rows, tokenizer, settings.max_prompt_length, length)
    ids, sampling = [row["prompt_id"] for row in fitted], Sampling(settings.rollouts, settings.temperature, length)
    if settings.engine == "transformers":

        def sample(index: int) -> Group:
            seeded = sampling._replace(seed=group_seed(settings.seed, index))
            return sampled_group(model, tokenizer, task, fitted[index], seeded)

        yield sample, ids
        return
    longest = min(settings.max_prompt_length + length, tokenizer.model_max_length)
    memory = settings.vllm_gpu_memory_utilization
    with vllm_engine(settings.model, settings, max_length=longest, memory=memory) as engine:
        prompts = [prompt_for(row, tokenizer) for row in fitted]

        @lru_cache(maxsize=1)
        def block(start: int) -> list[PromptAnswers]:
            seeded = sampling._replace(seed=settings.seed)
            return generate_with_vllm(engine, tokenizer, prompts[start : start + BLOCK], seeded, first=start)

        def written(index: int) -> Group:
            answers = block(index - index % BLOCK)[index % BLOCK].sampled
            return written_group(tokenizer, task, fitted[index], answers, model.device)

        yield written, ids


def _check_prompts(analysis: Analysis, ids: list[str]) -> None:
    with contextlib.closing(analysis.lines(len(ids))) as lines:
        for line in lines:
            if line["prompt_id"] != ids[line["index"]]:
                raise CalibrantError(
                    f"'{analysis.path}' has the prompt '{line['prompt_id']}' in line {line['index'] + 1}, where the "
                    f"data now have '{ids[line['index']]}'; give another --out"
                )
