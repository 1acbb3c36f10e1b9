"""Models that FSDP2 (`fully_shard`) shards over processes: logits of completions, with shared prompts.

Weights are whole within the model's own forward alone, so the head is not used outside of it. Each pass gathers weights
from all processes, which therefore have to run equally many: a batch takes one pass, on a route that the processes
agree on, and what fails on one process counts as failed on all. Routes of two passes for one backward pass (`cached`)
do not go with FSDP2, which frees the weights of a layer once its backward pass is done.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from calibrant.policy.head import is_sharded, pass_logits
from calibrant.policy.prompts import Prompts, Tokens, distinct_prompts
from calibrant.policy.routes import PASSES, short_rows, whole_logits, working_route
from calibrant.policy.verify import NotShared, assert_close, reason_of, record_of

ORDER = ("flat", "packed", "plain", "logits")
"""Routes, from the one that asks most of a model and a batch to the one that any can take."""

SHARED = ("packed", "flat")
"""Those of them that share prompts."""

Value = TypeVar("Value")


def largest(value: int, device: torch.device) -> int:
    """The largest value of all processes, each of which has to call it."""
    every = torch.tensor(value, device=device)
    torch.distributed.all_reduce(every, op=torch.distributed.ReduceOp.MAX)
    return int(every)


def together(model: nn.Module, device: torch.device, work: Callable[[], Value]) -> Value:
    """What `work()` returns; where processes shard the model and it fails on one, all raise an error.

    For steps of one pass at most: a process that went on to the next pass would wait for the one that failed. An error
    within the pass itself is not agreed on.
    """
    problem = None
    try:
        value = work()
    except Exception as error:  # of any model
        problem = error
    if is_sharded(model) and largest(int(problem is not None), device) and problem is None:
        problem = NotShared("it failed on another process")
    if problem is not None:
        raise problem
    return value


def sharded_logits(model: nn.Module, batch: Tokens, prompts: Prompts) -> Tensor:
    """Logits `[n, V]` of the completion tokens of a batch without empty columns, from one pass.

    The first time that processes agree on a route, its logits for a few rows are compared with those of whole rows, and
    a route that differs or fails is not taken again; gradients are not compared. Errors are raised.
    """
    where, device = batch.completion_mask != 0, batch.prompt_ids.device
    while (route := ORDER[largest(ORDER.index(working_route(model, batch, prompts, SHARED)), device)]) != "logits":
        try:
            _verify(model, route, batch, prompts)
        except Exception as error:  # on all processes
            record_of(model).failed[route] = reason_of(error)
        else:
            return pass_logits(model, PASSES[route](model, batch, prompts), where)
    return whole_logits(model, batch)[where]


def _verify(model: nn.Module, route: str, batch: Tokens, prompts: Prompts) -> None:
    """Compares a route with whole rows the first time that a process has completion tokens; all raise its errors."""
    way, verified, device = f"{route}, sharded", record_of(model).verified, batch.prompt_ids.device
    if way in verified:
        return
    few = short_rows(model, batch, prompts)
    where = few.completion_mask != 0
    if not largest(int(where.any()), device):
        return

    @torch.no_grad()
    def both() -> tuple[Tensor, Tensor]:
        forward = together(model, device, lambda: PASSES[route](model, few, distinct_prompts(few)))
        shared = together(model, device, lambda: pass_logits(model, forward, where))
        return shared, whole_logits(model, few)[where]

    together(model, device, lambda: assert_close(model, f"logits of the route '{route}'", both))
    verified.add(way)
