"""Work on texts once per job: each process reads a part of the texts of all processes, and the results are gathered.

A method still sees the groups of all processes. Embeddings are those of one process to the bit, as whole batches of the
embedder are divided; entailment probabilities up to rounding (3e-6), as they depend on the pairs in their batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.text.inputs import Readers, TextGroups
from calibrant.user_code import describe

if TYPE_CHECKING:
    from calibrant.text.embed import Embedder  # with its libraries 250 MB, which others do without

Value = TypeVar("Value")
Item = TypeVar("Item")


def divided(readers: Readers, accelerator: Accelerator) -> Readers:
    """Readers with the results of `readers`, of which each process computes a part.

    Every process has to call them with the same texts. An error in one process is raised by all.
    """
    if accelerator.num_processes == 1:
        return readers
    embedder = cast("Embedder | None", readers.embed)
    return replace(
        readers,
        embed=embedder and _divided_batches(embedder, accelerator),
        cluster=readers.cluster and _divided_groups(readers.cluster, accelerator),
        entail=readers.entail and _divided_groups(readers.entail, accelerator),
    )


def gathered(work: Callable[[], Value], accelerator: Accelerator) -> list[Value]:
    """What `work()` returns on each process, in the order of processes.

    Raises CalibrantError on every process, with the sentence of the first that failed; a single process raises its own
    error.
    """
    if accelerator.num_processes == 1:
        return [work()]
    value, problem, cause = None, None, None
    try:
        value = work()
    except Exception as error:
        cause, problem = error, str(error)
        if not isinstance(error, CalibrantError):
            problem = f"process {accelerator.process_index} failed: {describe(error)}"
    results = gather_object([(value, problem)])
    problems = [sentence for _, sentence in results if sentence is not None]
    if problems:
        raise CalibrantError(problems[0]) from cause
    return [result for result, _ in results]


def _divided_batches(embedder: "Embedder", accelerator: Accelerator) -> Callable[[Sequence[str]], Tensor]:
    return lambda texts: embedder.by_batches(
        texts, lambda batches: _in_turns(embedder.embed_batches, batches, accelerator)
    )


def _divided_groups(read: Callable[[TextGroups], Tensor], accelerator: Accelerator) -> Callable[[TextGroups], Tensor]:
    def call(groups: TextGroups) -> Tensor:
        order = sorted(range(len(groups)), key=lambda i: -sum(map(len, set(groups[i]))))
        longest_first = [groups[i] for i in order]
        rows = _in_turns(lambda own: list(read(own).cpu().numpy()), longest_first, accelerator)
        return torch.from_numpy(np.stack(rows))[torch.tensor(order).argsort()]

    return call


def _in_turns(
    function: Callable[[list[Item]], list[Value]], items: Sequence[Item], accelerator: Accelerator
) -> list[Value]:
    """`function(items)`, of which process r computes the items r, r + P, r + 2 P, ... of P processes."""
    count = accelerator.num_processes
    own = list(items[accelerator.process_index :: count])
    results = gathered(lambda: function(own) if own else [], accelerator)
    return [results[i % count][i // count] for i in range(len(items))]
