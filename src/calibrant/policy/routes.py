"""Which routes a model can take, and the cheapest of them for a batch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from torch import nn

from calibrant.errors import CalibrantError
from calibrant.policy import cached, packed
from calibrant.policy.cost import MARGIN, cached_cost, packed_cost, plain_cost
from calibrant.policy.head import Head, Recorded, model_name, text_config, unwrapped
from calibrant.policy.prompts import Batch, Prompts

Route = Literal["auto", "cached", "packed"]

STATES: Mapping[str, Callable[[nn.Module, Head, Batch, Prompts], Recorded]] = {
    "cached": cached.cached_states,
    "packed": packed.packed_states,
}


def obstacles(model: nn.Module) -> dict[str, str | None]:
    """Why a model cannot take each route, or None: as far as can be told before a forward pass.

    Args:
        model: a causal language model of transformers.

    Returns:
        `{"cached": reason, "packed": reason}`; a reason reads after the model's name, None where the route is open.
    """
    both = refusal(model)
    return {"cached": both or cached.refusal(model), "packed": both or packed.refusal(model)}


def refusal(model: nn.Module) -> str | None:
    """Why a model cannot share prompts at all, in log-probabilities or generation, or None."""
    if getattr(getattr(unwrapped(model), "active_peft_config", None), "is_prompt_learning", False):
        return "has virtual tokens before its prompts"
    ropes = getattr(text_config(model), "rope_parameters", None) or {}
    types = {rope.get("rope_type") for rope in [ropes, *ropes.values()] if isinstance(rope, dict)}
    changing = types & {"dynamic", "longrope"}
    return f"has {changing.pop()} rotary positions, which change with the length of the pass" if changing else None


def check_route(route: str) -> None:
    """Raises unless there is such a route."""
    if route not in ("auto", *STATES):
        raise CalibrantError(f"unknown route {route!r}; give one of: auto, {', '.join(STATES)}")


def possible(model: nn.Module, route: Route) -> list[str]:
    """The route that is asked for, or those of all that the model can take.

    Raises:
        CalibrantError: the model cannot take the route, or any.
    """
    check_route(route)
    against = obstacles(model)
    asked = list(STATES) if route == "auto" else [route]
    open_ones = [name for name in asked if against[name] is None]
    if not open_ones:
        reasons = " and ".join(dict.fromkeys(f"it {against[name]}" for name in asked))
        raise CalibrantError(
            f"{model_name(model)} cannot share prompts (route {route}): {reasons}; use the plain forward for it"
        )
    return open_ones


def cheapest(model: nn.Module, batch: Batch, prompts: Prompts, routes: Iterable[str]) -> tuple[str, bool]:
    """The cheapest of some routes for a batch, and whether it is cheaper than the plain forward."""
    width, distinct, rows = text_config(model).hidden_size, len(prompts.first), len(prompts.which)
    prompt, completion = batch.prompt_ids.shape[1], batch.completion_ids.shape[1]
    costs = {
        "cached": cached_cost(prompt, distinct, rows, completion, width),
        "packed": packed_cost(prompt, distinct, packed.longest_suffix(batch, prompts), width),
    }
    best = min(routes, key=costs.__getitem__)
    return best, distinct < rows and costs[best] < MARGIN * plain_cost(prompt, rows, completion, width)
