"""Which parameters hooks can serve: found by looking at the graph of a tiny forward pass, not by trusting names.

A parameter is served if every way in which it enters the result is known: it belongs to a layer with a rule; that layer
is called once and keeps rollouts apart on its first axis; and the graph reaches the parameter as often as layers own
it, so it is used nowhere else, not even by a function that takes the weight without calling its layer. A weight that an
embedding shares with the head is served too. Whatever is left falls back to one backward pass a rollout.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibrant.gradients.layers import kind_of
from calibrant.gradients.modes import differentiating
from calibrant.gradients.rows import Rows, token_logits

PROBE_ROWS, PROBE_TOKENS = 2, 3


class Layer(NamedTuple):
    """A layer with a rule, and which of its parameters are served."""

    kind: str
    parameters: frozenset[str]
    tied_to: nn.Module | None  # the embedding whose weight a head shares


class Plan(NamedTuple):
    """Layers to hook, and the parameters for which there is no rule."""

    layers: dict[nn.Module, Layer]
    fallback: dict[str, nn.Parameter]


def make_plan(model: nn.Module, chosen: Mapping[str, nn.Parameter], rows: Rows) -> Plan:
    """Sorts the chosen parameters into layers with a rule and the rest."""
    owners = _owners(model)
    kinds = {module: kind_of(module) for parameter in chosen.values() for module, _ in owners[parameter]}
    once, uses = _probe(model, chosen, rows, kinds)
    served: dict[nn.Module, set[str]] = {}
    heads: dict[nn.Module, nn.Module] = {}
    fallback = {}
    for name, parameter in chosen.items():
        places = owners[parameter]
        tied = _tied_pair([(module, kinds[module]) for module, _ in places])
        known = all(module in once and kinds[module] for module, _ in places) and uses.get(parameter) == len(places)
        if not known or (len(places) > 1 and not tied):
            fallback[name] = parameter
            continue
        heads.update([tied] if tied else [])
        for module, own in places:
            served.setdefault(module, set()).add(own)
    layers = {m: Layer(str(kinds[m]), frozenset(own), heads.get(m)) for m, own in served.items()}
    return Plan(layers, fallback)


def _owners(model: nn.Module) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """For each parameter the modules that own it, with its name there."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(parameter, []).append((module, name))
    return owners


def _tied_pair(places: list[tuple[nn.Module, str | None]]) -> tuple[nn.Module, nn.Module] | None:
    """(head, embedding) if these two and nothing else share a weight."""
    kinds = {kind: module for module, kind in places}
    if len(places) == 2 and set(kinds) == {"linear", "embedding"}:
        return kinds["linear"], kinds["embedding"]
    return None


def _probe(
    model: nn.Module, chosen: Mapping[str, nn.Parameter], rows: Rows, modules: Mapping[nn.Module, object]
) -> tuple[set[nn.Module], dict[nn.Parameter, int]]:
    """Modules called once with rollouts apart, and how often the graph reaches each parameter."""
    calls: dict[nn.Module, list[bool]] = {module: [] for module in modules}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module].append(_apart(first_input(args, kwargs)) and _apart(output))

    ids = rows.ids[:1, -1:].expand(PROBE_ROWS, PROBE_TOKENS)
    tiny = Rows(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool))
    handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        with differentiating(model, chosen.values()), torch.enable_grad():
            logits = token_logits(model, tiny, PROBE_TOKENS)
            uses = _uses(logits)
    finally:
        for handle in handles:
            handle.remove()
    return {module for module, found in calls.items() if found == [True]}, uses


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a layer was called with, named or not."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _apart(value: Any) -> bool:
    """Whether the first axis are rows; flattened tokens (experts, routers) have no axis for the rollout."""
    if not isinstance(value, Tensor) or value.shape[:1] != (PROBE_ROWS,):
        return False
    return value.ndim > 2 or (value.ndim == 2 and not value.is_floating_point())


def _uses(result: Tensor) -> dict[nn.Parameter, int]:
    """How many edges of the graph behind a result lead to each parameter."""
    counts: dict[nn.Parameter, int] = {}
    for node in _nodes(result.grad_fn):
        for following, _ in node.next_functions:
            parameter = getattr(following, "variable", None)
            if parameter is not None:
                counts[parameter] = counts.get(parameter, 0) + 1
    return counts


def _nodes(root: Any) -> Iterator[Any]:
    """The nodes of a graph, each once."""
    seen, waiting = {root}, [root]
    while waiting:
        node = waiting.pop()
        yield node
        fresh = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= fresh
        waiting.extend(fresh)
