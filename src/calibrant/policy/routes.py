"""Which routes a model can take, and the cheapest of them for a batch.

Costs are in forward passes of one token. A token costs 1 for the weights and `L / (6 D)` for attending to L columns,
with D the width of the model: a layer of a transformer multiplies `24 D^2` numbers per token, and its attention
`4 L D`. Attention is counted as computed, with the columns that the mask hides; a pass costs s beside its tokens.
Calibrated by measurement (c) on CPUs and one H200, see benchmarks/prefix.py.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from calibrant.errors import CalibrantError
from calibrant.policy import cached, flat, packed
from calibrant.policy.head import ForwardPass, Head, Recorded, model_name, pass_states, text_config, unwrapped
from calibrant.policy.prompts import Prompts, Tokens
from calibrant.policy.verify import reason_of, record_of, short_prompts, warn_once

Route = Literal["auto", "cached", "packed", "flat"]

ROUTES = ("cached", "packed", "flat")
"""Those that share prompts."""

TOKENS_TO_VERIFY = 16
PASS_TOKENS = 64.0  # what a further forward pass costs beside its tokens on a CPU, and on other devices at least
LAUNCHES = 1.4e10  # on those: so many divided by D^2, as kernels are launched in about the same time for any width
COPY = 0.03  # what it costs to repeat the keys and values of one prompt token for one row
MARGIN = 0.9  # sharing has to cost less than this share of the plain forward: the estimate has errors


def plain_pass(model: nn.Module, batch: Tokens, prompts: Prompts | None = None) -> ForwardPass:
    """The pass over every row, whatever the model and the prompts."""
    ids, mask = batch.whole()
    last = batch.prompt_ids.shape[1] - 1
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    return ForwardPass(inputs, last, lambda states: states[:, last:])


PASSES: Mapping[str, Callable[[nn.Module, Tokens, Prompts], ForwardPass]] = {
    "packed": packed.packed_pass,
    "flat": flat.flat_pass,
    "plain": plain_pass,
}
"""Routes of one forward pass. Raise NotShared for a batch or a model that they do not suit."""


def route_states(route: str, model: nn.Module, head: Head, batch: Tokens, prompts: Prompts) -> Recorded:
    """What the head reads to predict each completion token, `[B, T, D]`; meaningless after the last token of a row."""
    if route == "cached":
        return cached.cached_states(model, head, batch, prompts)
    return pass_states(model, head, PASSES[route](model, batch, prompts))


def whole_logits(model: nn.Module, batch: Tokens) -> Tensor:
    """Logits `[B, T, V]` of completion tokens, as any causal model returns them for whole rows."""
    ids, mask = batch.whole()
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[:, batch.prompt_ids.shape[1] - 1 : -1]


def short_rows(model: nn.Module, batch: Tokens, prompts: Prompts) -> Tokens:
    """Three rows to compare routes on, shortened: two of one prompt, if there are, and one of another."""
    pair = (prompts.which == prompts.rows.argmax()).nonzero()[:2, 0]
    few = batch.rows(torch.cat([pair, prompts.first[-1:]]))
    completions = (x[:, :TOKENS_TO_VERIFY] for x in few[2:])
    return Tokens(*short_prompts(model, few.prompt_ids, few.prompt_mask), *completions)


def obstacles(model: nn.Module) -> dict[str, str | None]:
    """Why a model cannot take each route, as far as can be told before a forward pass.

    Returns:
        `{"cached": reason, "packed": reason, "flat": reason}`; a reason continues a sentence about the model, as in
        "has virtual tokens before its prompts"; None: the route can be taken.
    """
    both = refusal(model)
    own = {"cached": cached.cached_refusal, "packed": packed.packed_refusal, "flat": flat.flat_refusal}
    return {name: both or reason(model) for name, reason in own.items()}


def reasons_against(model: nn.Module) -> dict[str, str | None]:
    """Why each route is not taken, as a sentence: of `obstacles`, or how it failed before; None: it can be taken."""
    against = {name: obstacle and f"it {obstacle}" for name, obstacle in obstacles(model).items()}
    return against | record_of(model).failed


def working_route(model: nn.Module, batch: Tokens, prompts: Prompts, among: Sequence[str] = ROUTES) -> str:
    """The route that has not failed and pays for this batch, "plain" or, where the head cannot be read, "logits"."""
    plainly = "logits" if "plain" in record_of(model).failed else "plain"
    if len(prompts.first) == len(prompts.which):
        return plainly
    try:
        against = reasons_against(model)
        routes = [route for route in among if against[route] is None]
        if routes:
            best, pays = cheapest(model, batch, prompts, routes)
            return best if pays else plainly
        warn_once(model, str(against[among[0]]))
    except Exception as error:
        warn_once(model, reason_of(error))
    return plainly


def refusal(model: nn.Module) -> str | None:
    """Why a model cannot share prompts at all, in log-probabilities or generation, or None."""
    if getattr(getattr(unwrapped(model), "active_peft_config", None), "is_prompt_learning", False):
        return "has virtual tokens before its prompts"
    ropes = getattr(text_config(model), "rope_parameters", None) or {}
    types = {rope.get("rope_type") for rope in [ropes, *ropes.values()] if isinstance(rope, dict)}
    changing = types & {"dynamic", "longrope"}
    return f"has {changing.pop()} rotary positions, which change with the length of the pass" if changing else None


def check_route(route: str) -> None:
    """Raises a CalibrantError unless there is such a route."""
    if route not in ("auto", *ROUTES):
        raise CalibrantError(f"unknown route {route!r}; give one of: auto, {', '.join(ROUTES)}")


def possible(model: nn.Module, route: Route) -> list[str]:
    """The route that is asked for, or those of all that the model can take."""
    check_route(route)
    against = obstacles(model)
    asked = list(ROUTES) if route == "auto" else [route]
    open_ones = [name for name in asked if against[name] is None]
    if not open_ones:
        reasons = " and ".join(dict.fromkeys(f"it {against[name]}" for name in asked))
        raise CalibrantError(
            f"{model_name(model)} cannot share prompts (route {route}): {reasons}; use the plain forward for it"
        )
    return open_ones


def cheapest(model: nn.Module, batch: Tokens, prompts: Prompts, routes: Iterable[str]) -> tuple[str, bool]:
    """The cheapest of some routes for a batch, and whether it is cheaper than the plain forward."""
    width, distinct, rows = text_config(model).hidden_size, len(prompts.first), len(prompts.which)
    start = pass_cost(batch.prompt_ids.device, width)
    prompt, completion = batch.prompt_ids.shape[1], batch.completion_ids.shape[1]
    costs = {
        "cached": cached_cost(prompt, distinct, rows, completion, width, start),
        "packed": packed_cost(prompt, distinct, packed.longest_suffix(batch, prompts), width, start),
        "flat": flat_cost(batch, prompts, width),
    }
    best = min(routes, key=costs.__getitem__)
    return best, distinct < rows and costs[best] < MARGIN * plain_cost(prompt, rows, completion, width, start)


def pass_cost(device: torch.device, width: int) -> float:
    """What one forward pass costs beside its tokens."""
    return PASS_TOKENS if device.type == "cpu" else max(PASS_TOKENS, LAUNCHES / width**2)


def plain_cost(prompt: int, rows: int, completion: int, width: int, start: float = PASS_TOKENS) -> float:
    """Every row with its own copy of the prompt: `s + rows c(P + T, P + T)` with `c(n, L) = n (1 + L / (6 D))`."""
    return start + rows * _cost(prompt + completion, prompt + completion, width)


def cached_cost(
    prompt: int, distinct: int, rows: int, completion: int, width: int, start: float = PASS_TOKENS
) -> float:
    """Prompts, then completions but their last tokens: `2 s + N c(P, P) + 0.03 rows P + rows c(T - 1, P + T - 1)`."""
    prompts, suffix = distinct * _cost(prompt, prompt, width), completion - 1
    if suffix <= 0:
        return start + prompts
    return 2 * start + prompts + COPY * rows * prompt + rows * _cost(suffix, prompt + suffix, width)


def packed_cost(prompt: int, distinct: int, longest_suffix: int, width: int, start: float = PASS_TOKENS) -> float:
    """One row per prompt with all of its completions, S tokens at most: `s + N c(P + S, P + S)`."""
    return start + distinct * _cost(prompt + longest_suffix, prompt + longest_suffix, width)


def flat_cost(batch: Tokens, prompts: Prompts, width: int) -> float:
    """Real tokens once, p of a prompt and s of a completion: `64 + sum c(p, p / 2) + sum c(s, p + s)`.

    Infinite where padding is in unusual places, and on devices other than a CPU: its blocks are many small operations
    there (c).
    """
    if batch.prompt_ids.device.type != "cpu" or not flat.is_flat(batch):
        return math.inf
    lengths, suffixes = flat.lengths_of(batch, prompts)
    once = sum(_cost(length, length / 2, width) for length in lengths)
    rows = zip(prompts.which.tolist(), suffixes, strict=True)
    return PASS_TOKENS + once + sum(_cost(suffix, lengths[prompt] + suffix, width) for prompt, suffix in rows)


def _cost(tokens: float, columns: float, width: int) -> float:
    return tokens * (1.0 + columns / (6.0 * width))
