"""The processes of a run: what one of them does for all, and how they end."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from calibrant.files import locked

T = TypeVar("T")

WAIT = timedelta(hours=12)  # the other processes wait while the first one evaluates


def processes() -> PartialState:
    """The processes of this run; on a machine without an accelerator they talk over the CPU."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT)


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns in the main process, in all of them; where it fails, the others exit with status 2."""
    outcome: list[Any] = [False, None]
    error = None
    if processes().is_main_process:
        try:
            outcome = [True, work()]
        except Exception as caught:  # the others wait to hear of it
            error = caught
    broadcast_object_list(outcome)
    if error is not None:
        raise error
    if not outcome[0]:
        raise SystemExit(2)
    result: T = outcome[1]
    return result


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Context manager: the main process holds the lock of a run directory."""
    with contextlib.ExitStack() as stack:
        on_main(lambda: stack.enter_context(locked(path)))
        yield


def shutdown_processes() -> None:
    """Barrier, then destroys the process group.

    Without it PyTorch's own threads may outlive the interpreter and abort a process that has done its work.
    """
    state = processes()
    state.wait_for_everyone()
    state.destroy_process_group()
