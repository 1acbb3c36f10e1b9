"""Seconds that the parts of a training step take."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ParamSpec, TypeVar

import torch

from calibrant.text.inputs import Readers

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


class Clock:
    """Adds up the seconds of named parts; what runs within another part counts for the inner one alone.

    A GPU is waited for at both ends of a part.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what runs within it as a part."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[Given, Returned]) -> Callable[Given, Returned]:
        """The function, as a part."""

        def call(*arguments: Given.args, **keywords: Given.kwargs) -> Returned:
            with self.part(name):
                return function(*arguments, **keywords)

        return call

    def readers(self, readers: Readers) -> Readers:
        """The functions that read texts, each as a part."""
        names = {"embed": "embedding", "cluster": "clustering", "entail": "entailment"}
        given = {field: (name, getattr(readers, field)) for field, name in names.items()}
        return replace(readers, **{field: self.timed(*pair) for field, pair in given.items() if pair[1] is not None})

    def taken(self) -> dict[str, float]:
        """Seconds by part since it was called last."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
