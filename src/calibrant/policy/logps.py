"""Log-probabilities of completions: plain, with shared prompts, and in chunks of rows."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from calibrant.errors import CalibrantError
from calibrant.policy.head import Head, Recorded, autocast_of, find_head, run, token_logps
from calibrant.policy.prompts import Batch, check_batch, distinct_prompts, group_chunks
from calibrant.policy.routes import STATES, Route, choose


class SharedPrefix(NamedTuple):
    """Of each completion token: log-probability `[B, T]`, entropy `[B, T]`, the state that predicts it `[B, T, D]`."""

    logps: Tensor
    entropies: Tensor | None
    hidden_states: Tensor | None


class Wanted(NamedTuple):
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
    """Log-probabilities of completion tokens with one forward of every row: the reference.

    `logp_t = log softmax(z_t / temperature)[y_t]`, `z_t` the logits after the prompt and the completion before t. As
    in TRL the model gets ids and mask alone, so positions are the model's own, and what is padding in the
    completion is 0.

    Args:
        model: a causal language model of transformers, in wrappers or not.
        prompt_ids: `[B, P]`, padded on the left.
        prompt_mask: `[B, P]`, 0 and 1.
        completion_ids: `[B, T]`, padded on the right.
        completion_mask: `[B, T]`, 0 and 1.
        temperature: that the logits are divided by.
        entropies: whether to compute entropies.
        hidden_states: whether to return the states that the output head reads.

    Returns:
        `logps [B, T]` and `entropies [B, T]` in nats, in at least float32; `hidden_states [B, T, D]` in the type of
        the model, the one at t predicts token t. All are differentiable, and 0 where the completion mask is.

    Raises:
        CalibrantError: shapes that do not fit, masks of other values than 0 and 1, or a model whose head cannot be
            used on its own.

    Reference: TRL, `GRPOTrainer._get_per_token_logps_and_entropies` (a).
    """
    batch = Batch(prompt_ids, prompt_mask, completion_ids, completion_mask)
    _check("plain_logps", batch, temperature)
    return _plain(model, batch, Wanted(temperature, entropies, hidden_states), completion_ids.shape[1])


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

    Two routes give the same numbers and gradients up to rounding:

    * `cached`: the prompts run once with a cache that keeps its graph, the completions run on the cache repeated. Two
      forwards, any attention with keys and values. Gradient checkpointing switches the cache off, so not with that.
    * `packed`: one forward over rows of a prompt and all of its completions one after another, kept apart by the
      attention mask. Rotary positions, eager or SDPA attention; with gradient checkpointing too. It skips the padding
      of completions, and costs more when completions are long, as all columns of a row are attended to.

    Rows may stand in any order and prompts may have any number of rows. A model in training mode with dropout draws
    one mask for a prompt instead of one for each row: noise that the rows of a group share.

    Args:
        model: a causal language model of transformers, in wrappers or not.
        prompt_ids: `[B, P]`, padded on the left.
        prompt_mask: `[B, P]`, 0 and 1.
        completion_ids: `[B, T]`, padded on the right.
        completion_mask: `[B, T]`, 0 and 1; a row may be empty.
        temperature: that the logits are divided by.
        entropies: whether to compute entropies.
        hidden_states: whether to return the states that the output head reads.
        prefix_index: `[B]`, integers, which prompt each row has; found by comparison when None.
        route: "cached", "packed", or "auto" for the one that is expected to be cheaper.

    Returns:
        As `plain_logps`.

    Raises:
        CalibrantError: as `plain_logps`; a `prefix_index` that gives different prompts one number; a model that can
            take no route, with the reason.

    Reference: `plain_logps` is the definition; `check_prefix` compares both for a model of one's own.
    """
    batch = Batch(prompt_ids, prompt_mask, completion_ids, completion_mask)
    _check("shared_prefix_logps", batch, temperature)
    return _shared(model, batch, Wanted(temperature, entropies, hidden_states), prefix_index, route, plainly=False)


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
    """Log-probabilities as of `plain_logps`, a few rows at a time, with prompts shared where that pays.

    Rows are cut along prompts (`group_chunks`). A chunk is computed plainly if sharing is not expected to be cheaper
    there, and all are with route "auto" if the model is known to take none. For passes without gradients, as of old
    and reference policies; with gradients the graphs of all chunks are held at once.

    Args:
        model, prompt_ids, prompt_mask, completion_ids, completion_mask: as in `shared_prefix_logps`.
        rows_per_chunk: most rows at a time.
        temperature, entropies, hidden_states, prefix_index, route: as in `shared_prefix_logps`.

    Returns:
        As `plain_logps`, rows in the order of the batch.

    Raises:
        CalibrantError: as `shared_prefix_logps`; rows_per_chunk is not a positive integer.
    """
    batch = Batch(prompt_ids, prompt_mask, completion_ids, completion_mask)
    _check("logps_in_chunks", batch, temperature)
    which, wanted = distinct_prompts(batch, prefix_index).which, Wanted(temperature, entropies, hidden_states)
    chunks = group_chunks(which, rows_per_chunk)
    parts = [_shared(model, batch.rows(rows), wanted, which[rows], route, plainly=True) for rows in chunks]
    back = torch.cat(chunks).argsort()
    return SharedPrefix(
        torch.cat([part.logps for part in parts])[back],
        torch.cat([part.entropies for part in parts if part.entropies is not None])[back] if entropies else None,
        torch.cat([part.hidden_states for part in parts if part.hidden_states is not None])[back]
        if hidden_states
        else None,
    )


def _check(caller: str, batch: Batch, temperature: float) -> None:
    check_batch(caller, batch)
    if not 0 < temperature < float("inf"):
        raise CalibrantError(f"{caller}: temperature has to be a positive number, got {temperature!r}")


def _plain(model: nn.Module, batch: Batch, wanted: Wanted, columns: int) -> SharedPrefix:
    """With the first columns of the completions, which have to reach every token that counts."""
    head, completion_mask = find_head(model), batch.completion_mask[:, :columns]
    ids = torch.cat([batch.prompt_ids, batch.completion_ids[:, :columns]], dim=1)
    mask = torch.cat([batch.prompt_mask, completion_mask.to(batch.prompt_mask)], dim=1)
    last = batch.prompt_ids.shape[1] - 1
    recorded = run(model, head, last, input_ids=ids, attention_mask=mask, use_cache=False)
    states = recorded.states[:, last:]
    return _scored(head, recorded._replace(states=states), batch, wanted)


def _shared(
    model: nn.Module, batch: Batch, wanted: Wanted, prefix_index: Tensor | None, route: Route, *, plainly: bool
) -> SharedPrefix:
    """With shared prompts, or plainly where that is allowed and cheaper."""
    head, short = find_head(model), batch.without_last_columns()
    prompts = distinct_prompts(short, prefix_index)
    chosen = choose(model, short, prompts, route, plainly=plainly)
    if chosen == "plain":
        return _plain(model, batch, wanted, short.completion_ids.shape[1])
    return _scored(head, STATES[chosen](model, head, short, prompts), batch, wanted)


def _scored(head: Head, recorded: Recorded, batch: Batch, wanted: Wanted) -> SharedPrefix:
    """Log-probabilities from the states that predict the first columns of the completions; 0 where the mask is."""
    where = batch.completion_mask != 0
    columns = min(where.shape[1], recorded.states.shape[1])
    states = recorded.states[:, :columns][where[:, :columns]]
    with autocast_of(recorded):
        logps, entropies = token_logps(
            head, states, batch.completion_ids[where], temperature=wanted.temperature, entropies=wanted.entropies
        )
    return SharedPrefix(
        _placed(logps, where),
        None if entropies is None else _placed(entropies, where),
        _placed(states, where[..., None].expand(*where.shape, states.shape[-1])) if wanted.hidden_states else None,
    )


def _placed(values: Tensor, where: Tensor) -> Tensor:
    return values.new_zeros(where.shape).masked_scatter(where, values)
