"""Scores units on the nodes of a Ray cluster."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from calibrant.files import JsonObject, write_with
from calibrant.ray_cluster import connected
from calibrant.score.pools import Result, ScoringPool
from calibrant.score.settings import ScoreSettings
from calibrant.score.units import PartlyScored, UnitScorer
from calibrant.text.inputs import Readers, TextGroups

_scorer: UnitScorer | None = None  # of this worker process


@contextmanager
def cluster(address: str, scorer: UnitScorer) -> Iterator[ScoringPool]:
    """The nodes of the Ray cluster at an address, as a pool."""
    with connected(address) as ray:
        yield Cluster(ray, scorer)


class Cluster:
    """The nodes of a Ray cluster, each with calibrant installed: a task per unit, and an actor that holds the models.

    Shards come back as bytes, so that the nodes need not share a file system. What a lost node had is scored again.
    """

    def __init__(self, ray: Any, scorer: UnitScorer):
        self.ray = ray
        self.size = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        self.settings = ray.put(scorer.settings)
        self.task = ray.remote(max_retries=-1)(_work)
        if scorer.with_models():
            scorer.readers = _remote_readers(ray, scorer)

    def submit(self, unit: pa.Table, part: PartlyScored, out: Path | None) -> Result:
        """As `Pool.submit`."""
        reference = self.task.remote(self.settings, unit, part, out.suffix if out else None)

        def result() -> JsonObject:
            try:
                summary, content = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause from None
            if out:
                write_with(out, lambda file: file.write_bytes(content))
            return summary

        return result


def _work(settings: ScoreSettings, unit: pa.Table, part: PartlyScored, suffix: str | None) -> tuple[JsonObject, bytes]:
    """The summary of a unit and the content of its shard, on any node."""
    global _scorer
    if _scorer is None or _scorer.given != settings:
        torch.set_num_threads(1)
        _scorer = UnitScorer(settings)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"part{suffix}" if suffix else None
        return _scorer.complete(unit, part, out), out.read_bytes() if out else b""


class Models:
    """The embedding and the entailment model, in an actor."""

    def __init__(self, settings: ScoreSettings):
        self.scorer = UnitScorer(settings)

    @cached_property
    def readers(self) -> Readers:
        """Loaded at the first call."""
        return self.scorer.readers

    def embed(self, texts: Sequence[str]) -> Tensor:
        """As `Readers.embed`."""
        assert self.readers.embed is not None
        return self.readers.embed(texts)

    def cluster(self, groups: TextGroups) -> Tensor:
        """As `Readers.cluster`."""
        assert self.readers.cluster is not None
        return self.readers.cluster(groups)

    def entail(self, groups: TextGroups) -> Tensor:
        """As `Readers.entail`."""
        assert self.readers.entail is not None
        return self.readers.entail(groups)


def _remote_readers(ray: Any, scorer: UnitScorer) -> Readers:
    """Readers whose models are in an actor, with a GPU if there is one; a lost actor is started anew."""
    settings = scorer.settings
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    actor = ray.remote(num_gpus=gpus, num_cpus=0, max_restarts=-1, max_task_retries=-1)(Models).remote(settings)

    def asking(method: Any) -> Callable[[Any], Tensor]:
        return lambda texts: ray.get(method.remote(texts))

    readers = Readers(None, scorer.rules.cluster, None, scorer.rules.judge)
    if settings.entailment_model is not None:
        readers = replace(readers, cluster=asking(actor.cluster), entail=asking(actor.entail))
    return scorer.embedding(readers, lambda: asking(actor.embed)) if scorer.reads_embeddings() else readers
