"""Rows of tokens, their log-likelihoods under a model, and the parameters to differentiate.

All context managers restore the model on exit.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError, nearest

CALLER = "gradient_variance"
KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
NamePredicate = Callable[[str], bool]


class Options(NamedTuple):
    """How log-likelihoods are computed, and whether inner products of single gradients are kept."""

    temperature: float
    reduction: str  # "sum" or "mean" over the tokens of a rollout
    rows_per_chunk: int | None
    keep: bool


class Rows(NamedTuple):
    """Prompts and completions, concatenated and padded on the right alone, `[R, T]` each.

    Causal attention sees no padding there, so that no mask is needed: rows of padding that see nothing are NaN in some
    types and kinds of attention, and 0 times NaN in the rows that count.
    """

    ids: Tensor
    attended: Tensor  # boolean; False on padding
    counted: Tensor  # boolean; the tokens whose log-probabilities are summed

    def part(self, rows: slice) -> "Rows":
        """A slice of the rows, without the columns that are padding in all of them."""
        length = int(self.attended[rows].sum(-1).max())
        return Rows(*(x[rows, :length] for x in self))


def batch_rows(batch: Mapping[str, Tensor], advantages: Tensor) -> Rows:
    """The rows of a batch with TRL's keys."""
    missing = [key for key in KEYS if key not in batch]
    if missing:
        raise CalibrantError(f"{CALLER}: the batch has no {', '.join(missing)}; it needs {', '.join(KEYS)}")
    prompt_ids, prompt_mask, completion_ids, completion_mask = (_flat(key, batch[key]) for key in KEYS)
    counted = completion_mask & _flat("tool_mask", batch["tool_mask"]) if "tool_mask" in batch else completion_mask
    check_shapes(
        CALLER,
        advantages=(advantages.flatten(), "N*G"),
        prompt_ids=(prompt_ids, "N*G P"),
        prompt_mask=(prompt_mask, "N*G P"),
        completion_ids=(completion_ids, "N*G T"),
        completion_mask=(completion_mask, "N*G T"),
        tool_mask=(counted, "N*G T"),
    )
    empty = (~prompt_mask.any(-1)).nonzero()
    if len(empty):
        raise CalibrantError(f"{CALLER}: the prompt of row {int(empty[0])} has no token; a first token has no score")
    attended = torch.cat([prompt_mask, completion_mask], 1)
    order = attended.long().argsort(dim=-1, descending=True, stable=True)
    ids, counted = torch.cat([prompt_ids, completion_ids], 1), torch.cat([torch.zeros_like(prompt_mask), counted], 1)
    return Rows(*(x.gather(-1, order) for x in (ids, attended, counted)))


def _flat(key: str, values: object) -> Tensor:
    """`[N, G, T]` or `[R, T]` as `[R, T]`; masks as booleans."""
    if not isinstance(values, Tensor) or values.ndim not in (2, 3) or values.is_floating_point():
        raise CalibrantError(f"{CALLER}: {key} has to be a tensor of integers [N*G, T] or [N, G, T]")
    rows = values.flatten(0, -2)
    return rows != 0 if key.endswith("mask") else rows


def passes(groups: int, rollouts: int, rows_per_chunk: int | None) -> Iterator[slice]:
    """Slices of groups per forward pass: at most `rows_per_chunk` rows, but whole groups and at least one."""
    step = max(1, (rows_per_chunk or rollouts) // rollouts)
    for start in range(0, groups, step):
        yield slice(start, min(start + step, groups))


def log_likelihoods(model: nn.Module, rows: Rows, options: Options) -> Tensor:
    """Sum (or mean) of the log-probabilities of the counted tokens of each row, `[R]`."""
    first = int(rows.counted.any(0).int().argmax())
    logits = token_logits(model, rows, rows.ids.shape[1] - first + 1)[:, :-1]
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if options.temperature != 1:
        logits = logits / options.temperature
    logprobs = -functional.cross_entropy(logits.flatten(0, 1), rows.ids[:, first:].flatten(), reduction="none")
    counted = rows.counted[:, first:]
    total = torch.where(counted, logprobs.view(counted.shape), 0.0).sum(-1)
    return total / counted.sum(-1).clamp(min=1) if options.reduction == "mean" else total


def token_logits(model: nn.Module, rows: Rows, keep: int) -> Tensor:
    """Logits of the last `keep` columns, `[R, keep, V]`; positions count from the first token."""
    positions = torch.arange(rows.ids.shape[1], device=rows.ids.device).expand_as(rows.ids)
    known = {"position_ids": positions, "logits_to_keep": keep, "use_cache": False}
    unwrap = getattr(model, "get_base_model", None)  # PEFT adapters hide the signature of their base
    base = unwrap() if callable(unwrap) else model
    accepted = inspect.signature(base.forward).parameters
    options = {name: value for name, value in known.items() if name in accepted}
    return model(input_ids=rows.ids, attention_mask=torch.ones_like(rows.ids), **options).logits[:, -keep:]


@contextmanager
def differentiating(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Context manager: only these parameters require a gradient."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def select(model: nn.Module, parameters: str | Sequence[str] | NamePredicate | None) -> dict[str, nn.Parameter]:
    """The chosen parameters by name; a shared one once, under its first name."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    if parameters is None:
        chosen = [parameter for parameter in names if parameter.requires_grad]
    elif callable(parameters):
        chosen = [parameter for parameter, aliases in names.items() if any(map(parameters, aliases))]
    else:
        chosen = _matching(names, [parameters] if isinstance(parameters, str) else list(parameters))
    if not chosen:
        raise CalibrantError("gradient_variance: no parameter is chosen; pass parameters='all' to include frozen ones")
    integers = [names[parameter][0] for parameter in chosen if not parameter.is_floating_point()]
    if integers:
        raise CalibrantError(f"gradient_variance: {integers[0]} is no floating-point parameter and has no gradient")
    return {names[parameter][0]: parameter for parameter in chosen}


def _matching(names: dict[nn.Parameter, list[str]], patterns: list[str]) -> list[nn.Parameter]:
    if patterns == ["all"]:
        return list(names)
    every = [alias for aliases in names.values() for alias in aliases]
    for pattern in patterns:
        if not any(fnmatchcase(alias, pattern) for alias in every):
            raise CalibrantError(
                f"gradient_variance: no parameter is named '{pattern}'{nearest(pattern, every)}; a name is "
                f"'{every[0]}', and * matches any part of one"
            )
    return [p for p, aliases in names.items() if any(fnmatchcase(a, pattern) for a in aliases for pattern in patterns)]
