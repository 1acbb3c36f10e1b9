"""A model for a while in evaluation mode, with the parameters that are asked for, and afterwards as it was."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from calibrant.errors import CalibrantError, nearest

Chooser = Callable[[str], bool]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode: no dropout, no checkpointing; each module's mode is restored."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def differentiating(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Only these parameters require a gradient."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def select(model: nn.Module, parameters: str | Sequence[str] | Chooser | None) -> dict[str, nn.Parameter]:
    """The parameters whose gradient is meant, by name; a shared one once, under its first name.

    Raises:
        CalibrantError: there is none, a name or pattern fits none, or one has no gradient (integers).
    """
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
        raise CalibrantError("gradient_variance: no parameter is chosen; parameters='all' takes frozen ones too")
    integers = [names[parameter][0] for parameter in chosen if not parameter.is_floating_point()]
    if integers:
        raise CalibrantError(f"gradient_variance: {integers[0]} is no floating-point parameter and has no gradient")
    return {names[parameter][0]: parameter for parameter in chosen}


def _matching(names: dict[nn.Parameter, list[str]], patterns: list[str]) -> list[nn.Parameter]:
    if patterns == ["all"]:
        return list(names)
    known = [alias for aliases in names.values() for alias in aliases]
    for pattern in patterns:
        if not any(fnmatchcase(alias, pattern) for alias in known):
            raise CalibrantError(
                f"gradient_variance: no parameter is named '{pattern}'{nearest(pattern, known)}; names are such as "
                f"'{known[0]}', and * stands for any part of one"
            )
    return [p for p, aliases in names.items() if any(fnmatchcase(a, pattern) for a in aliases for pattern in patterns)]
