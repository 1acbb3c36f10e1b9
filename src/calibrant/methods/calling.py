"""Calling methods: found by name, called with the inputs that they name, what they return checked."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from calibrant.checks import check_non_negative, check_shapes
from calibrant.errors import CalibrantError, nearest
from calibrant.groups import Groups
from calibrant.methods.inputs import READ_WITH, UNWEIGHTED, missing_input
from calibrant.methods.outcome import BASES, Method, Outcome, WeightedAdvantages, multiply, strengthened
from calibrant.methods.table import METHODS
from calibrant.user_code import import_object

WINDOW = "strength_window"
"""The entry of the state that holds the running distribution of signals."""
RESERVED = {"strength", "bases"}
"""Arguments of `apply`, which no hyper-parameter may be called."""


def resolve_method(method: str | Method) -> Method:
    """The function named by a key of `METHODS` or a dotted path, e.g. `"my_package.my_method"`; a function unchanged.

    Importing a dotted path runs the code of its module. All functions with an argument `method` take these three.

    >>> resolve_method("gcpo-bot")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: unknown method 'gcpo-bot' (did you mean 'gcpo_bot'?); known: grpo, dr_grpo, ...
    """
    if callable(method):
        return method
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    if not isinstance(method, str) or "." not in method:
        hint = nearest(str(method).lower().replace("-", "_"), METHODS)
        raise CalibrantError(
            f"unknown method {method!r}{hint}; known: {', '.join(METHODS)}; or give the dotted path of a function"
        )
    function: Method = import_object(method, "method")
    if not callable(function):
        raise CalibrantError(f"method '{method}' has to be a function, got {type(function).__name__}")
    _parameters(function)  # raises where the signature is not that of a method
    return function


def _parameters(method: Method) -> dict[str, inspect.Parameter]:
    """The parameters of a method's signature, checked: inputs by name, then keyword-only ones with a default."""
    parameters = dict(inspect.signature(method).parameters)
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise CalibrantError(
                f"method '{name_of(method)}': the parameter '{parameter}' cannot be passed by name; name each "
                "input, and each hyper-parameter after a bare *"
            )
        if parameter.kind == parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise CalibrantError(f"method '{name_of(method)}': the hyper-parameter '{name}' needs a default")
        if name in RESERVED:
            raise CalibrantError(f"method '{name_of(method)}': '{name}' is an argument of apply; rename the parameter")
    return parameters


def name_of(method: str | Method) -> str:
    """The name of a method: that of its function."""
    function = resolve_method(method)
    return str(getattr(function, "__name__", type(function).__name__))


def required_inputs(method: str | Method) -> tuple[str, ...]:
    """Names of the inputs that a method cannot do without, in order; `state` is not among them: `apply` supplies it.

    >>> required_inputs("gcpo_bot")
    ('rewards', 'embeddings', 'clusters', 'where')
    """
    return _inputs(method, optional=False)


def optional_inputs(method: str | Method) -> tuple[str, ...]:
    """Names of the inputs that a method reads if they are there: positional parameters with a default."""
    return _inputs(method, optional=True)


def _inputs(method: str | Method, *, optional: bool) -> tuple[str, ...]:
    parameters = _parameters(resolve_method(method)).items()
    named = [(name, p) for name, p in parameters if p.kind != p.KEYWORD_ONLY and name != "state"]
    return tuple(name for name, p in named if (p.default is not p.empty) is optional)


def keeps_state(method: str | Method) -> bool:
    """Whether a method has a memory, which passes from batch to batch.

    >>> keeps_state("ha_dw"), keeps_state("grpo")
    (True, False)
    """
    return "state" in _parameters(resolve_method(method))


def read_inputs(method: str | Method, hyper: Mapping[str, object] | None = None) -> tuple[str, ...]:
    """Names of the inputs that a method reads with its hyper-parameters `hyper`, optional ones last.

    >>> read_inputs("grpo_care", {"form": "agreement"})
    ('rewards', 'where', 'total_rewards', 'clusters')
    """
    function, chosen = resolve_method(method), hyperparameters(method) | dict(hyper or {})
    only = READ_WITH.get(name_of(function), {}) if METHODS.get(name_of(function)) is function else {}
    unread = {name for name, (option, values) in only.items() if chosen[option] not in values}
    return tuple(x for x in (*required_inputs(function), *optional_inputs(function)) if x not in unread)


def hyperparameters(method: str | Method) -> dict[str, Any]:
    """The hyper-parameters of a method, name -> default, in order.

    >>> hyperparameters("gcpo_bot")
    {'alpha': 0.6, 'reward_range': (0.0, 2.0), 'mean_one': False}
    """
    return {name: p.default for name, p in _parameters(resolve_method(method)).items() if p.kind == p.KEYWORD_ONLY}


def check_hyperparameters(method: str | Method, hyper: Mapping[str, object]) -> None:
    """Raises CalibrantError if `hyper` names what is no hyper-parameter of the method; the method checks values."""
    defaults = hyperparameters(method)
    for name in hyper:
        if name not in defaults:
            hint = f"{nearest(name, defaults)}; it takes {', '.join(defaults) or 'none'}"
            raise CalibrantError(f"method '{name_of(method)}' has no hyper-parameter '{name}'{hint}")


def summary(method: str | Method) -> str:
    """The first line of a method's docstring; empty without one.

    >>> summary("grpo")
    'Plain GRPO: group-standardised advantages, every weight 1.'
    """
    return (inspect.getdoc(resolve_method(method)) or "").partition("\n")[0]


def apply(
    method: str | Method,
    groups: Groups,
    state: Mapping[str, Tensor] | None = None,
    *,
    bases: Mapping[str, Tensor] | None = None,
    strength: float | None = None,
    **hyper: Any,
) -> WeightedAdvantages:
    """Calls a method with the inputs that it names, and multiplies its base advantages by its weights.

    `state` is what a method with memory returned at the previous step. `bases` are base advantages by name, `[N, G]`,
    used instead of those of the groups' rewards (see `scorer.trainer_bases`). `strength` replaces the method's weights
    by weights of mean 1 and that coefficient of variation in the same order (see `weights.running_weights`), whose
    running distribution is kept in the state. For a method that does not name
    `rewards`, rollouts without a finite reward count too. CalibrantError for an input that the groups lack, an unknown
    hyper-parameter, or a result that is not an outcome of finite numbers.

    >>> apply("rd_only", Groups(torch.tensor([[2.0, 0.0]])), alpha=0.0).weights
    tensor([[1., 1.]])
    """
    function = resolve_method(method)
    check_hyperparameters(function, hyper)
    parameters = _parameters(function)
    where = groups.where if "rewards" in parameters else groups.inputs.get("where", torch.ones_like(groups.where))
    own_state = {name: x for name, x in (state or {}).items() if name != WINDOW}
    supplied = {**groups.inputs, "rewards": groups.rewards, "where": where, "state": own_state}
    lacking = [name for name in required_inputs(function) if name not in supplied]
    if lacking := [name for name in lacking if name in read_inputs(function, hyper)]:
        raise missing_input(f"method '{name_of(function)}'", lacking)
    named = {name: supplied.get(name) for name in parameters if name in supplied or name in required_inputs(function)}
    with torch.no_grad():
        outcome = function(**named, **hyper)
        _check(function, outcome, groups.rewards)
        if strength is not None:
            check_strength(function, strength, hyper)
            outcome = _strengthened(function, outcome, where, strength, state or {})
        return multiply(outcome, groups.rewards, where, bases)


def check_strength(method: str | Method, strength: float, hyper: Mapping[str, object]) -> None:
    """Raises CalibrantError where a strength cannot be had: without weights, or with a rule of their mean."""
    name = name_of(method)
    check_non_negative(f"method '{name}'", strength=strength)
    if METHODS.get(name) is resolve_method(method) and name in UNWEIGHTED:
        raise CalibrantError(f"method '{name}' has no weights that strength could set; leave it out, or take rd_only")
    if "ratio_variance" in required_inputs(method):
        raise CalibrantError(f"method '{name}' weighs anew in every pass over a batch, so its strength cannot be set")
    if hyper.get("mean_one"):
        raise CalibrantError("give strength or mean_one, not both: weights of a given strength have mean 1")


def _strengthened(
    method: Method, outcome: Outcome, where: Tensor, strength: float, state: Mapping[str, Tensor]
) -> Outcome:
    if outcome.weights.ndim == 3:
        raise CalibrantError(f"method '{name_of(method)}' has weights per token, whose strength cannot be set")
    outcome, window = strengthened(outcome, where, strength, state.get(WINDOW))
    return outcome._replace(state={**(outcome.state or {}), WINDOW: window})


def _check(method: Method, outcome: Outcome, rewards: Tensor) -> None:
    caller = f"method '{name_of(method)}'"
    if not isinstance(outcome, Outcome):
        raise CalibrantError(f"{caller} has to return an Outcome, got {type(outcome).__name__}")
    if not isinstance(outcome.scores, Mapping):
        raise CalibrantError(f"{caller}: scores have to be a dictionary, got {type(outcome.scores).__name__}")
    advantages = outcome.base if isinstance(outcome.base, Tensor) else None
    if advantages is None and outcome.base not in BASES:
        raise CalibrantError(
            f"{caller} returned the base {outcome.base!r}; it has to be {', '.join(BASES)} or a tensor of advantages"
        )
    check_shapes(
        caller,
        rewards=(rewards, "N G"),
        weights=(outcome.weights, _axes(outcome.weights)),
        base=(advantages, _axes(advantages) if _axes(outcome.weights) == "N G T" else "N G"),
        replaced=(outcome.replaced, _axes(advantages)),
        **{f"score {n}": (x, "N G" if getattr(x, "ndim", 1) == 2 else "N") for n, x in outcome.scores.items()},
    )
    if outcome.replaced is not None and outcome.replaced.dtype != torch.bool:
        raise CalibrantError(f"{caller}: replaced has to be a boolean mask [N, G], got {outcome.replaced.dtype}")
    for part, tensor in (("weights", outcome.weights), ("advantages", advantages)):
        if tensor is not None and not torch.isfinite(tensor).all():
            raise CalibrantError(f"{caller} returned {part} that are not finite")


def _axes(tensor: Tensor | None) -> str:
    """Letters of the axes of weights or advantages, per rollout or per token."""
    return "N G T" if isinstance(tensor, Tensor) and tensor.ndim == 3 else "N G"
