"""Scores one unit of rollouts: texts, methods, the columns of the result, a summary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from calibrant.files import JsonObject, write_json_lines
from calibrant.groups import Groups
from calibrant.methods import METHODS, Method, read_inputs, resolve_method
from calibrant.methods.calling import keeps_state
from calibrant.rollouts import RolloutGroups
from calibrant.rollouts.columns import TYPES
from calibrant.rollouts.files import write_table
from calibrant.rollouts.units import FILE, ROW, group_columns
from calibrant.score.methods import States, distinct_scores, named_columns, score_all
from calibrant.score.settings import ScoreSettings
from calibrant.score.summary import Summary
from calibrant.scorer import Scored
from calibrant.tasks import Task
from calibrant.tasks import resolve as resolve_task
from calibrant.tasks.answers import answer_rules
from calibrant.text.embed import Embedder
from calibrant.text.embedding_cache import CachedEmbedder, Embed
from calibrant.text.inputs import Readers
from calibrant.text.readers import load_readers

MODEL_INPUTS = ("embeddings", "clusters", "entailment")  # of them the last two with an entailment model only


class PartlyScored(NamedTuple):
    """What some of the methods made of a unit."""

    scored: Mapping[str, Scored]  # without the inputs of the methods
    refused: Mapping[str, str]


class UnitScorer:
    """Scores units as the settings say; models are loaded when the first method needs them.

    `embedding_cache` is the file of embeddings, if the settings name none.
    """

    def __init__(self, settings: ScoreSettings, embedding_cache: str | None = None):
        task = resolve_task(settings.task) if settings.task else None
        self.rules = answer_rules(task)
        self.given = settings
        self.settings = replace(settings, reward_range=settings.reward_range or self.rules.reward_range)
        self.task: Task | None = task
        self.cache = settings.embedding_cache or embedding_cache
        self.meaning = settings.meaning or self.rules.meaning
        self.methods: Mapping[str, Method] = METHODS
        if settings.method:
            self.methods = {settings.method: resolve_method(settings.method)}

    @cached_property
    def ordered(self) -> set[str]:
        """The methods that one process applies to all units, in their order: with a memory, or with a model."""
        models = MODEL_INPUTS if self.settings.entailment_model else MODEL_INPUTS[:1]
        return {
            name
            for name, method in self.methods.items()
            if self.settings.strength is not None
            or keeps_state(method)
            or set(models) & set(read_inputs(method, self.settings.method_options))
        }

    def reads_embeddings(self) -> bool:
        """Whether a method is applied that reads embeddings."""
        return self.settings.embeddings and any("embeddings" in read_inputs(method) for method in self.methods.values())

    def with_models(self) -> bool:
        """Whether texts go through a model."""
        return self.reads_embeddings() or self.settings.entailment_model is not None

    @cached_property
    def readers(self) -> Readers:
        """What reads texts; no embedding model without `embeddings`."""
        if self.settings.entailment_model is not None:
            _quiet_loading()
        inputs = {name for method in self.methods.values() for name in read_inputs(method)} - {"embeddings"}
        readers = load_readers(inputs, self.settings, self.rules.cluster, self.rules.judge)
        return self.embedding(readers, self._load_embedder) if self.reads_embeddings() else readers

    def embedding(self, readers: Readers, load: Callable[[], Embed]) -> Readers:
        """Readers that embed, too; embeddings are kept on the disk, and a model is loaded when a text is new."""
        embed = CachedEmbedder(self.settings.embedding_model, load, self.cache) if self.cache else load()
        return replace(readers, embed=embed)

    def _load_embedder(self) -> Embedder:
        _quiet_loading()
        return Embedder(self.settings.embedding_model)

    def judged(self, unit: pa.Table) -> pa.Table:
        """The unit with the task's rewards of the answers, if it has references, and no reward or verdict."""
        names = [name for name in ("reward", "correct", "answer", "references") if name in unit.column_names]
        columns = {name: unit[name] for name in names}
        filled = {name for name, values in columns.items() if values.null_count < len(unit)}
        if self.task is None or {"reward", "correct"} & filled or "references" not in filled:
            return unit
        if "answer" in filled:
            answers = unit["answer"].fill_null("").to_pylist()
        else:
            answers = [self.rules.extract(text) for text in unit["completion"].to_pylist()]
        references = [right or [] for right in unit["references"].to_pylist()]
        rewards = pa.array(self.task.reward_batch(answers, references), pa.float64())
        return unit.drop_columns([name for name in ("reward",) if name in columns]).append_column("reward", rewards)

    def groups(self, unit: pa.Table) -> RolloutGroups:
        """The rollouts of a unit as groups."""
        known = unit.select([name for name in unit.column_names if name in TYPES])
        return RolloutGroups(known.to_pandas(), self.rules.extract, keys=group_columns(known))

    def apply(self, groups: RolloutGroups, names: Sequence[str], states: States) -> PartlyScored:
        """Applies some of the methods, in their order; `states` is updated."""
        methods = {name: self.methods[name] for name in self.methods if name in names}
        scored, refused = score_all(groups, methods, self.settings, self.readers, self.meaning, states)
        where = {name: {"where": groups.counts} for name in scored}
        return PartlyScored(
            {name: replace(x, groups=Groups(x.groups.rewards, where[name])) for name, x in scored.items()}, refused
        )

    def complete(self, unit: pa.Table, part: PartlyScored, out: Path | None) -> JsonObject:
        """Applies the methods that need no order beside those of `part`; the summary, as plain data."""
        groups = self.groups(unit)
        rest = self.apply(groups, [name for name in self.methods if name not in self.ordered], {})
        return asdict(self.finish(unit, groups, [part, rest], out))

    def finish(self, unit: pa.Table, groups: RolloutGroups, parts: Sequence[PartlyScored], out: Path | None) -> Summary:
        """Writes the rollouts with their scores, if there is a file for them, and returns their summary."""
        scored = {name: part.scored[name] for name in self.methods for part in parts if name in part.scored}
        scores = distinct_scores(scored)
        if out:
            _write(out, unit.drop_columns([FILE, ROW]), named_columns(groups, scored, scores))
        where = groups.rewards.isfinite() & groups.counts
        refused = {name: reason for part in parts for name, reason in part.refused.items()}
        return Summary.of(scored, scores, where, refused)


def _write(path: Path, unit: pa.Table, columns: Mapping[str, np.ndarray]) -> None:
    arrays = {name: unit[name] for name in unit.column_names}
    arrays |= {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
    table = pa.table(arrays)
    if path.suffix == ".jsonl":
        write_json_lines(path, table.to_pylist())
    else:
        write_table(path, table)


def _quiet_loading() -> None:
    from calibrant.policy.models import quiet_loading  # imports transformers

    quiet_loading()
