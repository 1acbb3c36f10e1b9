"""Log-probabilities of completions: plain, with shared prompts, and in chunks of rows.

`logps_in_chunks` is the one place that decides between shared prompts and the plain forward.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from calibrant.errors import CalibrantError
from calibrant.policy.head import (
    Head,
    Recorded,
    autocast_of,
    find_head,
    has_head,
    is_sharded,
    pass_states,
    token_logps,
    unwrapped,
)
from calibrant.policy.logits import logps_of_logits
from calibrant.policy.prompts import Prompts, Tokens, check_batch, distinct_prompts, group_chunks
from calibrant.policy.routes import (
    Route,
    cheapest,
    check_route,
    plain_pass,
    possible,
    route_states,
    short_rows,
    whole_logits,
    working_route,
)
from calibrant.policy.sharded import sharded_logits
from calibrant.policy.verify import assert_close, reason_of, record_of


class SharedPrefix(NamedTuple):
    """Values of completion tokens, computed with shared prompts or without."""

    logps: Tensor  # log-probability of each token, `[B, T]`
    entropies: Tensor | None  # entropy of the distribution of each token, `[B, T]`; None: not asked for
    hidden_states: Tensor | None  # state that predicts each token, `[B, T, D]`; None: not asked for or not readable


class LogprobRequest(NamedTuple):
    """What to compute."""

    temperature: float
    entropies: bool
    hidden_states: bool


def plain_logps(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    temperature: float = 1.0,
    entropies: bool = False,
    hidden_states: bool = False,
) -> SharedPrefix:
    """Log-probabilities of completion tokens with one forward pass over every row: the reference.

    `logp_t = log softmax(z_t / temperature)[y_t]`, `z_t` the logits after the prompt and the completion before t. As
    in TRL the model gets ids and mask alone, so positions are the model's own.

    Raises:
        CalibrantError: shapes that do not fit, masks of other values than 0 and 1, or a model whose head cannot be
            used on its own.

    Reference: TRL, `GRPOTrainer._get_per_token_logps_and_entropies` (a).
    """
    batch = Tokens(prompt_ids, prompt_mask, completion_ids, completion_mask)
    _check("plain_logps", batch, temperature)
    head = find_head(model)
    states = pass_states(model, head, plain_pass(model, batch))
    return _scored(head, states, batch, LogprobRequest(temperature, entropies, hidden_states))


def shared_prefix_logps(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    temperature: float = 1.0,
    entropies: bool = False,
    hidden_states: bool = False,
    prefix_index: Tensor | None = None,
    route: Route = "auto",
) -> SharedPrefix:
    """Log-probabilities as of `plain_logps`, with each distinct prompt computed once for all rows that have it.

    Three routes give the same values and gradients up to rounding; "auto" takes the one that is expected to be fastest:

    * `cached`: one forward pass over the prompts fills a cache of keys and values, through which gradients flow; a
      second one over the completions reads it. For any attention with keys and values. Not with gradient
      checkpointing, which disables the cache.
    * `packed`: one forward pass over sequences of a prompt and all of its completions, which the attention mask keeps
      apart. For rotary positions and eager or SDPA attention, with gradient checkpointing too. It skips the padding of
      completions, and costs more when completions are long, as attention is computed between all of them.
    * `flat`: one forward pass over one sequence of real tokens, with each prompt once and attention that is computed
      prompt by prompt. For rotary positions and SDPA attention, with gradient checkpointing too. "auto" takes it on a
      CPU alone.

    Rows may be in any order, and prompts may have any number of rows. In training mode with dropout, the rows of a
    prompt share the dropout mask of its tokens.

    Raises:
        CalibrantError: as `plain_logps`; different prompts with the same number in `prefix_index`; a model that can
            take no route, with the reason.

    Reference: `plain_logps` is the definition; `check_prefix` compares both for your model.
    """
    batch = Tokens(prompt_ids, prompt_mask, completion_ids, completion_mask)
    _check("shared_prefix_logps", batch, temperature)
    head, short = find_head(model), batch.without_last_columns()
    prompts = distinct_prompts(short, prefix_index)
    chosen = cheapest(model, short, prompts, possible(model, route))[0]
    request = LogprobRequest(temperature, entropies, hidden_states)
    return _scored(head, route_states(chosen, model, head, short, prompts), batch, request)


def logps_in_chunks(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    rows_per_chunk: int,
    temperature: float = 1.0,
    entropies: bool = False,
    hidden_states: bool = False,
    prefix_index: Tensor | None = None,
    route: Route = "auto",
) -> SharedPrefix:
    """Log-probabilities as of `plain_logps`, `rows_per_chunk` rows at a time, with prompts shared where that is faster.

    `group_chunks` makes the chunks; one takes the plain path if that is expected to be faster. With gradients, the
    graphs of all chunks are held in memory at once.

    With route "auto", errors of sharing are not raised: the first time that a model takes a route, a few rows are
    compared with the plain path (hidden states and, where there is one, a gradient); a route that fails or differs is
    not taken again by this model, and one warning says when none is left. Where hidden states cannot be read, the
    log-probabilities come from the logits of whole rows, and `hidden_states` is None.

    Raises:
        CalibrantError: bad input; with another route than "auto", as `shared_prefix_logps`.
    """
    batch = Tokens(prompt_ids, prompt_mask, completion_ids, completion_mask)
    _check("logps_in_chunks", batch, temperature)
    check_route(route)
    which, request = distinct_prompts(batch, prefix_index).which, LogprobRequest(temperature, entropies, hidden_states)
    if is_sharded(model):  # equally many on each process
        chunks = list(which.argsort(stable=True).split(rows_per_chunk))
    else:
        chunks = group_chunks(which, rows_per_chunk)
    parts = [_chunk(model, batch.rows(rows), request, which[rows], route) for rows in chunks]
    back = torch.cat(chunks).argsort()
    logps, spread, states = (_joined(values, back) for values in zip(*parts, strict=True))
    assert logps is not None
    return SharedPrefix(logps, spread, states)


def _joined(parts: tuple[Tensor | None, ...], back: Tensor) -> Tensor | None:
    """Rows of all chunks in the order of the batch; None if a chunk has none."""
    given = [part for part in parts if part is not None]
    return torch.cat(given)[back] if len(given) == len(parts) else None


def reads_head(model: nn.Module) -> bool:
    """Whether the states before the output head can be read or, with FSDP2, chosen; else logits of whole rows are."""
    return is_sharded(model) or ("plain" not in record_of(model).failed and has_head(model))


def _check(caller: str, batch: Tokens, temperature: float) -> None:
    check_batch(caller, batch)
    if not 0 < temperature < float("inf"):
        raise CalibrantError(f"{caller}: temperature has to be a positive number, got {temperature!r}")


def _chunk(
    model: nn.Module, batch: Tokens, request: LogprobRequest, prefix_index: Tensor, asked: Route
) -> SharedPrefix:
    """With shared prompts where that pays, on the route that is asked for; "auto": on any that works, else plainly."""
    short = batch.without_last_columns()
    prompts = distinct_prompts(short, prefix_index)
    if is_sharded(model):
        return _of_logits(sharded_logits(model, short, prompts), batch, request)
    if asked != "auto":
        repeated = len(prompts.first) < len(prompts.which)
        best, pays = cheapest(model, short, prompts, possible(model, asked)) if repeated else ("plain", True)
        return _computed(model, best if pays else "plain", batch, short, prompts, request)
    while (route := working_route(model, short, prompts)) != "logits":
        try:
            if route != "plain":
                _verify(model, route, short, prompts)
            return _computed(model, route, batch, short, prompts, request)
        except Exception as error:  # models may raise any type; the plain path raises what is not of sharing
            record_of(model).failed[route] = reason_of(error)
    return logps_of_whole_logits(model, batch, request)


def _computed(
    model: nn.Module, route: str, batch: Tokens, short: Tokens, prompts: Prompts, request: LogprobRequest
) -> SharedPrefix:
    head = find_head(model)
    return _scored(head, route_states(route, model, head, short, prompts), batch, request)


def _verify(model: nn.Module, route: str, batch: Tokens, prompts: Prompts) -> None:
    """Compares a route with the plain forward on three short rows the first time; raises NotShared if they differ."""
    way, verified = f"{route}, gradients: {torch.is_grad_enabled()}", record_of(model).verified
    if way in verified:
        return
    few = short_rows(model, batch, prompts)
    inner, where = unwrapped(model), few.completion_mask != 0
    if not where.any():
        return
    head, prompts = find_head(inner), distinct_prompts(few)

    def both() -> tuple[Tensor, Tensor]:
        results = (route_states(each, inner, head, few, prompts) for each in (route, "plain"))
        shared, plain = (result.states[:, : where.shape[1]][where] for result in results)
        return shared, plain

    assert_close(inner, f"states of the route '{route}'", both)
    verified.add(way)


def logps_of_whole_logits(model: nn.Module, batch: Tokens, request: LogprobRequest) -> SharedPrefix:
    """Log-probabilities and entropies as of `plain_logps`, from the logits that any causal model returns."""
    return _of_logits(whole_logits(model, batch)[batch.completion_mask != 0], batch, request)


def _of_logits(logits: Tensor, batch: Tokens, request: LogprobRequest) -> SharedPrefix:
    """From logits `[n, V]` of the completion tokens of a batch."""
    where = batch.completion_mask != 0
    logps, entropies = logps_of_logits(logits, batch.completion_ids[where], request.temperature, request.entropies)
    return SharedPrefix(_placed(logps, where), None if entropies is None else _placed(entropies, where), None)


def _scored(head: Head, recorded: Recorded, batch: Tokens, request: LogprobRequest) -> SharedPrefix:
    """Log-probabilities from the states that predict the first columns of the completions; 0 where the mask is."""
    where = batch.completion_mask != 0
    columns = min(where.shape[1], recorded.states.shape[1])
    states = recorded.states[:, :columns][where[:, :columns]]
    with autocast_of(recorded):
        logps, entropies = token_logps(
            head, states, batch.completion_ids[where], temperature=request.temperature, entropies=request.entropies
        )
    return SharedPrefix(
        _placed(logps, where),
        None if entropies is None else _placed(entropies, where),
        _placed(states, where[..., None].expand(*where.shape, states.shape[-1])) if request.hidden_states else None,
    )


def _placed(values: Tensor, where: Tensor) -> Tensor:
    return values.new_zeros(where.shape).masked_scatter(where, values)
