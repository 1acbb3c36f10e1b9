"""Scores units in processes of this machine."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import torch

from calibrant.errors import CalibrantError
from calibrant.files import JsonObject
from calibrant.score.settings import ScoreSettings
from calibrant.score.units import PartlyScored, UnitScorer

Result = Callable[[], JsonObject]  # waits for the summary of a unit, as plain data

_scorer: UnitScorer | None = None  # of this worker process


class ScoringPool(Protocol):
    """Scores units; models stay with the process that reads."""

    size: int  # units that are scored at a time

    def submit(self, unit: pa.Table, part: PartlyScored, out: Path | None) -> Result:
        """Starts scoring a unit with the methods that need no order; the file `out` is written before it ends."""


@contextmanager
def processes(settings: ScoreSettings) -> Iterator[ScoringPool]:
    """Processes of this machine, as a pool; they are ended with it."""
    pool = Processes(settings)
    try:
        yield pool
    finally:
        pool.pool.shutdown(cancel_futures=True)


class Processes:
    """Processes of this machine."""

    def __init__(self, settings: ScoreSettings):
        context = get_context("forkserver")
        context.set_forkserver_preload(["calibrant.score.units"])
        self.size = settings.jobs
        self.pool = ProcessPoolExecutor(settings.jobs, context, _start, (settings,))

    def submit(self, unit: pa.Table, part: PartlyScored, out: Path | None) -> Result:
        """As `Pool.submit`."""
        try:
            future = self.pool.submit(_work, unit, part, out)
        except BrokenProcessPool:
            raise _killed() from None

        def result() -> JsonObject:
            try:
                return future.result()
            except BrokenProcessPool:
                raise _killed() from None

        return result


def _killed() -> CalibrantError:
    return CalibrantError(
        "a process was killed (is the memory too small?); give fewer --jobs: the same command, given again, continues"
    )


def _start(settings: ScoreSettings) -> None:
    """Prepares a worker process, which ends when the one that started it is gone."""
    global _scorer
    torch.set_num_threads(1)
    _scorer = UnitScorer(settings)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _work(unit: pa.Table, part: PartlyScored, out: Path | None) -> JsonObject:
    assert _scorer is not None
    return _scorer.complete(unit, part, out)
