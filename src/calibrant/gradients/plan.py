"""Which parameters hooks can serve, read from the autograd graph of a tiny forward pass rather than from names.

A parameter is served if every use of it is known: it belongs to a layer with a rule; that layer is called once, with
one row per rollout; and the graph reaches the parameter as often as layers own it, so that nothing else uses it, not
even a function that takes the weight without calling its layer. A weight that an embedding shares with the head is
served too. All others fall back to one backward pass per rollout.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from calibrant.gradients.layers import Layer, layer_kind
from calibrant.gradients.model import Rows, differentiating, token_logits

PROBE_ROWS, PROBE_TOKENS = 2, 3


class Plan(NamedTuple):
    """Layers to hook, and the parameters for which there is no rule."""

    layers: dict[nn.Module, Layer]
    fallback: dict[str, nn.Parameter]


def make_plan(model: nn.Module, chosen: Mapping[str, nn.Parameter], rows: Rows) -> Plan:
    """Sorts the chosen parameters into layers with a rule and the rest."""
    owners = _owners(model)
    kinds = {module: layer_kind(module) for parameter in chosen.values() for module, _ in owners[parameter]}
    once, uses = _probe(model, chosen, rows, kinds)
    served: dict[nn.Module, set[str]] = {}
    heads: dict[nn.Module, nn.Module] = {}
    fallback = {}
    for name, parameter in chosen.items():
        slots = owners[parameter]
        tied = _tied_pair([(module, kinds[module]) for module, _ in slots])
        known = all(module in once and kinds[module] for module, _ in slots) and uses.get(parameter) == len(slots)
        if not known or (len(slots) > 1 and not tied):
            fallback[name] = parameter
            continue
        heads.update([tied] if tied else [])
        for module, attribute in slots:
            served.setdefault(module, set()).add(attribute)
    layers = {m: Layer(str(kinds[m]), frozenset(attributes), heads.get(m)) for m, attributes in served.items()}
    return Plan(layers, fallback)


def _owners(model: nn.Module) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """For each parameter the modules that own it, with its name there."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(parameter, []).append((module, name))
    return owners


def _tied_pair(modules: list[tuple[nn.Module, str | None]]) -> tuple[nn.Module, nn.Module] | None:
    """(head, embedding) if these two and nothing else share a weight."""
    kinds = {kind: module for module, kind in modules}
    if len(modules) == 2 and set(kinds) == {"linear", "embedding"}:
        return kinds["linear"], kinds["embedding"]
    return None


def _probe(
    model: nn.Module, chosen: Mapping[str, nn.Parameter], rows: Rows, modules: Mapping[nn.Module, object]
) -> tuple[set[nn.Module], dict[nn.Parameter, int]]:
    """Modules called once with one row per rollout, and how often the graph reaches each parameter."""
    calls: dict[nn.Module, list[bool]] = {module: [] for module in modules}

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
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
    return {module for module, apart in calls.items() if apart == [True]}, uses


def first_input(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """The first argument of a layer's call, positional or named."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _apart(value: object) -> bool:
    """Whether the first axis is that of rows; flattened tokens (experts, routers) have none."""
    if not isinstance(value, Tensor) or value.shape[:1] != (PROBE_ROWS,):
        return False
    return value.ndim > 2 or (value.ndim == 2 and not value.is_floating_point())


def _uses(result: Tensor) -> dict[nn.Parameter, int]:
    """Parameter -> edges that lead to it in the graph of a result."""
    counts: Counter[nn.Parameter] = Counter()
    waiting, seen = [result.grad_fn] if result.grad_fn else [], set[Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        following = [function for function, _ in node.next_functions if function is not None]
        counts.update(function.variable for function in following if hasattr(function, "variable"))
        waiting.extend(following)
    return counts
