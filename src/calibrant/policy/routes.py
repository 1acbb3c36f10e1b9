"""Which routes a model can take, and the cheapest of them for a batch."""

from collections.abc import Callable, Mapping
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
    both = _refusal(model)
    return {"cached": both or cached.refusal(model), "packed": both or packed.refusal(model)}


def _refusal(model: nn.Module) -> str | None:
    """What stands against sharing prompts at all."""
    if getattr(getattr(unwrapped(model), "active_peft_config", None), "is_prompt_learning", False):
        return "has virtual tokens before its prompts"
    ropes = getattr(text_config(model), "rope_parameters", None) or {}
    types = {rope.get("rope_type") for rope in [ropes, *ropes.values()] if isinstance(rope, dict)}
    changing = types & {"dynamic", "longrope"}
    return f"has {changing.pop()} rotary positions, which change with the length of the pass" if changing else None


def choose(model: nn.Module, batch: Batch, prompts: Prompts, route: str, *, plainly: bool = False) -> str:
    """The route that is asked for, or the cheapest that the model can take; "plain" where that is allowed and cheaper.

    Raises:
        CalibrantError: the model cannot take the route, or any.
    """
    if route not in ("auto", *STATES):
        raise CalibrantError(f"unknown route {route!r}; give one of: auto, {', '.join(STATES)}")
    against = obstacles(model)
    wanted = list(STATES) if route == "auto" else [route]
    possible = [name for name in wanted if against[name] is None]
    if plainly and (len(prompts.first) == len(prompts.which) or (route == "auto" and not possible)):
        return "plain"
    if not possible:
        reasons = " and ".join(dict.fromkeys(f"it {against[name]}" for name in wanted))
        raise CalibrantError(
            f"{model_name(model)} cannot share prompts (route {route}): {reasons}; use the plain forward for it"
        )
    costs = _costs(model, batch, prompts)
    best = min(possible, key=costs.__getitem__)
    return "plain" if plainly and costs[best] >= MARGIN * costs["plain"] else best


def _costs(model: nn.Module, batch: Batch, prompts: Prompts) -> dict[str, float]:
    """What each route and the plain forward cost for a batch, in forward passes of one token."""
    width, distinct, rows = text_config(model).hidden_size, len(prompts.first), len(prompts.which)
    prompt, completion = batch.prompt_ids.shape[1], batch.completion_ids.shape[1]
    return {
        "plain": plain_cost(prompt, rows, completion, width),
        "cached": cached_cost(prompt, distinct, rows, completion, width),
        "packed": packed_cost(prompt, distinct, packed.longest_suffix(batch, prompts), width),
    }
