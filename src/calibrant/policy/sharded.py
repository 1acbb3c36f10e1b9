"""Models whose weights FSDP2 (`fully_shard`) spreads over processes: logits of completions, with shared prompts.

Weights are whole within the model's own forward alone, so the head is not used outside of it. Each pass gathers weights
from all processes, which therefore have to run equally many: a batch takes one pass, on a route that the processes
agree on, and what fails on one process counts as failed on all. Routes of two passes for one backward pass (`cached`)
do not go with FSDP2, which frees the weights of a layer once its backward pass is done.
"""

import torch
import torch.distributed
from torch import Tensor, nn

from calibrant.policy.head import pass_logits
from calibrant.policy.prompts import Prompts, Tokens, distinct_prompts
from calibrant.policy.routes import PASSES, cheapest, obstacles, short_rows, whole_logits
from calibrant.policy.verify import NotShared, assert_close, reason_of, record_of, warn_once

ROUTES = ("flat", "packed", "plain", "logits")
"""From the one that asks most of a model and a batch to the one that any can take."""


def largest(value: int, device: torch.device) -> int:
    """The largest value of all processes, each of which has to call it."""
    every = torch.tensor(value, device=device)
    torch.distributed.all_reduce(every, op=torch.distributed.ReduceOp.MAX)
    return int(every)


def failed_somewhere(problem: Exception | None, device: torch.device) -> Exception | None:
    """The problem of this process, or NotShared where another has one; None where no process has."""
    failed = largest(int(problem is not None), device)
    return NotShared("it failed on another process") if failed and problem is None else problem


def sharded_logits(model: nn.Module, batch: Tokens, prompts: Prompts) -> Tensor:
    """Logits `[n, V]` of the completion tokens of a batch without empty columns, from one pass.

    The first time that processes agree on a route, its logits for a few rows are compared with those of whole rows, and
    a route that differs or fails is not taken again; gradients are not compared. Errors are raised.
    """
    where, device = batch.completion_mask != 0, batch.prompt_ids.device
    verified, failed = record_of(model).verified, record_of(model).failed
    while (route := ROUTES[largest(ROUTES.index(_route(model, batch, prompts)), device)]) != "logits":
        if (way := f"{route}, sharded") in verified:
            return pass_logits(model, PASSES[route](model, batch, prompts), where)
        problem = failed_somewhere(_problem(model, route, batch, prompts), device)
        if problem is None:
            verified.add(way)
        else:
            failed[route] = reason_of(problem)
    return whole_logits(model, batch)[where]


def _route(model: nn.Module, batch: Tokens, prompts: Prompts) -> str:
    """The route that suits the batch of this process."""
    failed = record_of(model).failed
    plainly = "logits" if "plain" in failed else "plain"
    if len(prompts.first) == len(prompts.which):
        return plainly
    against = obstacles(model) | failed
    routes = [route for route in ("flat", "packed") if against[route] is None]
    if not routes:
        warn_once(model, f"{against['packed']}")
        return plainly
    best, pays = cheapest(model, batch, prompts, routes)
    return best if pays else plainly


def _problem(model: nn.Module, route: str, batch: Tokens, prompts: Prompts) -> Exception | None:
    """Why the logits of a route, for a few rows, are not those of whole rows; None where they are."""

    @torch.no_grad()
    def both() -> tuple[Tensor, Tensor]:
        few = short_rows(model, batch, prompts)
        where = few.completion_mask != 0
        found = pass_logits(model, PASSES[route](model, few, distinct_prompts(few)), where)
        return found, whole_logits(model, few)[where]

    try:
        assert_close(model, f"logits of the route '{route}'", both)
    except Exception as error:  # of any model
        return error
    return None
