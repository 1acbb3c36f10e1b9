"""Work on a GPU captured as a CUDA graph, which is launched as a whole. Replays run no Python, and so no hooks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """A function without arguments, captured: each replay reads and writes the tensors that it read and wrote."""

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        stream, pool = _place(device)
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(device)
        with noting() as self.notes, torch.cuda.stream(stream):
            self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # others may go on
            try:
                self._output = function()
            finally:
                self._graph.capture_end()

    def replay(self) -> Tensor:
        """Runs it again; a copy of what it returns."""
        self._graph.replay()
        return self._output.clone()

    def pass_notes(self) -> None:
        """Appends copies of what hooks saw to their lists."""
        for calls, value in self.notes:
            calls.append(tree_map_only(Tensor, Tensor.clone, value))


@cache
def _place(device: torch.device) -> tuple[torch.cuda.Stream, Any]:
    """The stream of all captures on a device, and their memory: of one graph at a time."""
    return torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
