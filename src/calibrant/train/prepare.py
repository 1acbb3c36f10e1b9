"""The inputs of a run, checked before anything is written."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from calibrant.errors import CalibrantError
from calibrant.methods import hyperparameters, name_of, read_inputs, resolve_method
from calibrant.policy.models import check_model, check_weights, quiet_loading
from calibrant.scorer import dry_run, options_of
from calibrant.tasks import chosen_task, training_task
from calibrant.tasks.base import Row, Task
from calibrant.tasks.prompts import truncate_for_policy
from calibrant.tasks.rewards import require_range, require_reward
from calibrant.tasks.selection import selected
from calibrant.text.embed import Embedder
from calibrant.text.entail import EntailmentJudge
from calibrant.train.possible import check_possible
from calibrant.train.processes import on_main
from calibrant.train.settings import TrainSettings

log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """The inputs of a run, without weights."""

    settings: TrainSettings
    task: Task
    tokenizer: PreTrainedTokenizerBase
    training: list[Row]
    evaluation: list[Row]  # the same for every seed of training; empty without an evaluation


def prepare(settings: TrainSettings) -> Prepared:
    """Reads and checks the inputs of a run, before anything is written or computed."""
    task, tokenizer = check(settings)
    evaluation, training = _rows(settings, task, tokenizer)
    if len(training) < settings.prompts_per_step:
        raise CalibrantError(
            f"there are {len(training)} training prompts, fewer than the {settings.prompts_per_step} of a step; "
            "lower --prompts-per-step, or give more"
        )
    return Prepared(settings, task, tokenizer, training, evaluation)


def check(settings: TrainSettings) -> tuple[Task, PreTrainedTokenizerBase]:
    """The task and the tokenizer of a run, once everything but the rows of its data is checked."""
    quiet_loading()
    task = chosen_task(settings, training=True)
    method = resolve_method(settings.method)
    hyper = options_of(method, settings)
    if settings.evaluation or ("rewards" in read_inputs(method, hyper) and task.rewards is None):
        require_reward(task)
    if "reward_range" in hyperparameters(method) and "reward_range" not in hyper:
        require_range(task, f"the method '{name_of(method)}'")
    dry_run(method, hyper, strength=settings.strength)
    inputs = set(read_inputs(method, hyper))
    shape, tokenizer = check_model(settings.model, settings)
    check_possible(settings, shape, inputs)
    on_main(lambda: check_weights(settings.model))
    if "embeddings" in inputs:
        Embedder(settings.embedding_model)
    if settings.entailment_model and inputs & {"clusters", "entailment"}:
        EntailmentJudge(settings.entailment_model, dtype=settings.entailment_dtype)
    if settings.report_to != "none" and find_spec(settings.report_to) is None:
        raise CalibrantError(
            f"option 'report_to' is '{settings.report_to}', which is not installed; pip install {settings.report_to}"
        )
    return task, tokenizer


def _rows(settings: TrainSettings, task: Task, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Row], list[Row]]:
    """Rows for the evaluation and for training, whose prompts leave room for an answer."""
    source, folder = training_task(task), Path(settings.data_dir) if settings.data_dir else None
    length = settings.max_completion_length or task.max_completion_length
    count = settings.eval_prompts or None
    unseen = task.load(task.splits[-1], count, 0, data_dir=folder) if settings.evaluation else []
    evaluation = truncate_for_policy(unseen, tokenizer, settings.max_prompt_length, length) if unseen else []
    rows = source.load(source.splits[0], settings.train_rows, settings.seed, data_dir=folder)
    if settings.selection:
        rows = selected(rows, settings.selection)
    asked = {row["prompt"] for row in rows}
    if repeated := sum(row["prompt"] in asked for row in unseen):
        log.warning("%d of %d prompts of the evaluation are also training prompts", repeated, len(unseen))
    return evaluation, truncate_for_policy(rows, tokenizer, settings.max_prompt_length, length)
