"""Work on a GPU captured as a CUDA graph, which is launched as a whole. Replays run no Python, and so no hooks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Note(NamedTuple):
    """What a hook saw, and the list that it goes to."""

    calls: list[Any]
    value: Any  # tensors, or tuples of them and others


_notes: list[list[Note]] = []
"""Of the captures that are under way."""


def note(calls: list[Any], value: Any) -> None:
    """Appends what a hook saw to its list; while work is captured, at each replay instead, as replays call no hooks."""
    if _notes:
        _notes[-1].append(Note(calls, value))
    else:
        calls.append(value)


@contextmanager
def noting() -> Iterator[list[Note]]:
    """Within it, hooks add to the list that it yields."""
    _notes.append([])
    try:
        yield _notes[-1]
    finally:
        _notes.pop()


class Captured:
    """A function without arguments, captured: each replay reads and writes the tensors that it read and wrote.

    The function has to have run before, so that what libraries set up at their first use is there.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        place = _place(device)
        self._graph = torch.cuda.CUDAGraph()
        with noting() as self.notes:
            self._output = _captured(self._graph, function, place.stream, place.first.pool())

    def replay(self) -> Tensor:
        """Runs it again; a copy of what it returns."""
        self._graph.replay()
        return self._output.clone()

    def pass_notes(self) -> None:
        """Appends copies of what hooks saw to their lists."""
        for calls, value in self.notes:
            calls.append(tree_map_only(Tensor, Tensor.clone, value))


class _Place(NamedTuple):
    """Where captures on a device are made. `first` is a graph that lives as long as the process."""

    stream: torch.cuda.Stream
    first: torch.cuda.CUDAGraph  # its memory serves all that follow; memory of which no graph is left cannot be used


@cache
def _place(device: torch.device) -> _Place:
    place = _Place(torch.cuda.Stream(device), torch.cuda.CUDAGraph())
    ones = torch.ones(1, device=device)
    _captured(place.first, lambda: ones + ones, place.stream, None)
    return place


def _captured(
    graph: torch.cuda.CUDAGraph, function: Callable[[], Tensor], stream: torch.cuda.Stream, pool: Any
) -> Tensor:
    """Captures a function; what it returns."""
    torch.cuda.synchronize(stream.device)
    try:
        with torch.cuda.stream(stream), _another_random_state(stream.device):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # other threads may go on
            try:
                output = function()
            except Exception:
                with suppress(Exception):  # it says only that there was an error
                    graph.capture_end()
                raise
            graph.capture_end()
            return output
    except Exception:
        _place.cache_clear()  # the memory counts as in use
        raise


@contextmanager
def _another_random_state(device: torch.device) -> Iterator[None]:
    """Within it, the random generator of a GPU has another state; a capture that fails leaves that one unusable."""
    generator = torch.cuda.default_generators[device.index]
    before = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(before)
