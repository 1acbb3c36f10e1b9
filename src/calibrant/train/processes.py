"""The processes of a run: work of the main process for all, and shutdown."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from calibrant.files import locked

T = TypeVar("T")

TIMEOUT = timedelta(hours=12)  # the other processes wait while the main process evaluates


def processes() -> PartialState:
    """The state of this run's processes; without an accelerator they communicate through the CPU."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=TIMEOUT)


def on_main(work: Callable[[], T]) -> T:
    """The result of `work`, computed in the main process, in all processes; if it fails, the others exit with 2."""
    results: list[T] = []
    error = None
    if processes().is_main_process:
        try:
            results = [work()]
        except Exception as caught:  # raised below, once the waiting processes know of it
            error = caught
    (results,) = broadcast_object_list([results])
    if error is not None:
        raise error
    if not results:
        raise SystemExit(2)
    return results[0]


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Context manager: the main process holds the lock of a run directory."""
    with contextlib.ExitStack() as stack:
        on_main(lambda: stack.enter_context(locked(path)))
        yield


def shutdown_processes() -> None:
    """Barrier, then destroys the process group.

    Otherwise PyTorch's threads may outlive the interpreter, and abort a process that has succeeded.
    """
    state = processes()
    state.wait_for_everyone()
    state.destroy_process_group()
