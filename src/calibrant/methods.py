"""Every method: rewards and signals of groups go in, weighted advantages come out.

A method is a function whose positional parameters name what it needs and whose keyword-only parameters are its
hyper-parameters, each with a default:

    def mine(rewards, embeddings, where, *, alpha=0.6) -> Outcome: ...

`rewards` and `where` are always there; the others are names in `Groups.inputs` (a positional parameter with a default
is passed if it is there). A method is named by its key in `METHODS` or by its dotted path, e.g. `my_package.mine`.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.advantages import standardised
from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError
from calibrant.groups import Groups, group_count, like_input, valid
from calibrant.signals import barycentric_transport, cosine_dispersion, reward_dispersion
from calibrant.weights import boost, damp, group_alpha
from calibrant.weights import mean_one as with_mean_one


class Outcome(NamedTuple):
    """What a method makes of groups.

    `advantages = base * weights` for a method that weighs; a method that replaces the advantage has weights 1.
    """

    advantages: Tensor  # [N, G], finite, 0 for unscorable rollouts
    weights: Tensor  # [N, G], finite, at least 0
    scores: dict[str, Tensor]  # name -> [N]
    base: str | None = "standardised"  # the function of calibrant.advantages that is weighed; None: replaced


Method = Callable[..., Outcome]


def grpo(rewards: Tensor, where: Tensor | None) -> Outcome:
    """Plain GRPO: group-standardised advantages, every weight 1.

    `A_i = (r_i - mean) / (std + 1e-4)`.

    Args:
        rewards: `[N, G]`; a value that is not finite marks an unscorable rollout.
        where: `[N, G]`, boolean; which rollouts count.

    Returns:
        An outcome without scores.

    Reference: Shao et al. 2024, DeepSeekMath (arXiv:2402.03300); conventions as in TRL (a).

    >>> grpo(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), None).advantages
    tensor([[ 1.4997, -0.4999, -0.4999, -0.4999]])
    """
    check_shapes("grpo", rewards=(rewards, "N G"), where=(where, "N G"))
    base = standardised(rewards, where)
    return Outcome(base, torch.ones_like(base), {})


def rd_only(
    rewards: Tensor,
    where: Tensor | None,
    *,
    alpha: float = 0.6,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """GCPO without geometry (its ablation): groups whose rewards differ more get larger updates.

    `A~_i = A_i (1 + alpha_G RD)`, `alpha_G = alpha / ln n`.

    Args:
        rewards: `[N, G]`; a value that is not finite marks an unscorable rollout.
        where: `[N, G]`, boolean; which rollouts count.
        alpha: strength, at least 0; 0 gives plain GRPO, bit for bit.
        reward_range: (lowest, highest) task reward.
        mean_one: divide the weights by their mean over the batch.

    Returns:
        An outcome with the scores `reward_dispersion` and `reward_weight`; weights in [1, 1 + alpha_G].

    Raises:
        CalibrantError: shapes differ, alpha is negative or not finite, or the range is empty.

    Reference: GCPO, equation 11 and section 4.4 (b).

    >>> rd_only(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), None).weights[0, 0]  # 1 + 0.6 / ln 4 * 0.75
    tensor(1.3246)
    """
    check_shapes("rd_only", rewards=(rewards, "N G"), where=(where, "N G"))
    where = valid(rewards, where)
    dispersion = reward_dispersion(rewards.double(), reward_range, where)
    weight = boost(dispersion, group_alpha(alpha, group_count(rewards, where)))
    return _weighed(rewards, where, weight, {"reward_dispersion": dispersion, "reward_weight": weight}, mean_one)


def gcpo_cd(
    rewards: Tensor,
    embeddings: Tensor,
    where: Tensor | None,
    *,
    alpha: float = 0.6,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """GCPO with cosine dispersion: damps groups whose answers disagree, boosts groups whose rewards do.

    `A~_i = A_i * clip(1 - alpha_G CD^2, 0, 1) * (1 + alpha_G RD)`, `alpha_G = alpha / ln n`.

    Args:
        rewards: `[N, G]`; a value that is not finite marks an unscorable rollout.
        embeddings: `[N, G, D]`, of the answers (question answering) or the whole completions (mathematics).
        where: `[N, G]`, boolean; which rollouts count.
        alpha: strength, at least 0; 0 gives plain GRPO, bit for bit.
        reward_range: (lowest, highest) task reward.
        mean_one: divide the weights by their mean over the batch.

    Returns:
        An outcome with the scores `cosine_dispersion`, `reward_dispersion`, `geometric_weight` (in [0.81, 1] for
        G = 16 and alpha = 0.6) and `reward_weight` (in [1, 1.22]).

    Raises:
        CalibrantError: shapes differ, alpha is negative or not finite, or the range is empty.

    Reference: GCPO, equations 7, 8 and 11 (b).

    >>> e = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    >>> gcpo_cd(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), e, None).scores["geometric_weight"]  # 1 - 0.4328 * 0.375^2
    tensor([0.9391])
    """
    check_shapes("gcpo_cd", rewards=(rewards, "N G"), embeddings=(embeddings, "N G D"), where=(where, "N G"))
    where = valid(rewards, where)
    uncertainty = cosine_dispersion(embeddings, where).double()
    return _gcpo("cosine_dispersion", uncertainty, rewards, where, alpha, reward_range, mean_one)


def gcpo_bot(
    rewards: Tensor,
    embeddings: Tensor,
    clusters: Tensor,
    where: Tensor | None,
    *,
    alpha: float = 0.6,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """GCPO with barycentric transport: damps groups whose meanings lie apart, boosts groups whose rewards do.

    `A~_i = A_i * clip(1 - alpha_G BoT^2, 0, 1) * (1 + alpha_G RD)`, `alpha_G = alpha / ln n`.

    Args:
        rewards: `[N, G]`; a value that is not finite marks an unscorable rollout.
        embeddings: `[N, G, D]`, of the answers (question answering) or the whole completions (mathematics).
        clusters: `[N, G]`, integers; equal numbers in a group mean one meaning.
        where: `[N, G]`, boolean; which rollouts count.
        alpha: strength, at least 0; 0 gives plain GRPO, bit for bit.
        reward_range: (lowest, highest) task reward.
        mean_one: divide the weights by their mean over the batch.

    Returns:
        An outcome with the scores `barycentric_transport`, `reward_dispersion`, `geometric_weight` (in [0.946, 1]
        for G = 16 and alpha = 0.6) and `reward_weight` (in [1, 1.22]).

    Raises:
        CalibrantError: shapes differ, alpha is negative or not finite, or the range is empty.

    Reference: GCPO, equations 9 to 11 (b).

    >>> e = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    >>> outcome = gcpo_bot(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), e, torch.tensor([[0, 0, 1, 1]]), None)
    >>> outcome.scores["barycentric_transport"], outcome.weights[0, 0]  # weight 0.99614 * 1.32461
    (tensor([0.0944]), tensor(1.3195))
    """
    check_shapes(
        "gcpo_bot",
        rewards=(rewards, "N G"),
        embeddings=(embeddings, "N G D"),
        clusters=(clusters, "N G"),
        where=(where, "N G"),
    )
    where = valid(rewards, where)
    uncertainty = barycentric_transport(embeddings, clusters, where).double()
    return _gcpo("barycentric_transport", uncertainty, rewards, where, alpha, reward_range, mean_one)


def _gcpo(
    name: str,
    uncertainty: Tensor,
    rewards: Tensor,
    where: Tensor,
    alpha: float,
    reward_range: Sequence[float],
    mean_one: bool,
) -> Outcome:
    """The product of a damping weight of an uncertainty, `[N]` float64, and the boost of reward dispersion."""
    strength = group_alpha(alpha, group_count(rewards, where))
    dispersion = reward_dispersion(rewards.double(), reward_range, where)
    scores = {
        name: uncertainty,
        "reward_dispersion": dispersion,
        "geometric_weight": damp(uncertainty, strength),
        "reward_weight": boost(dispersion, strength),
    }
    return _weighed(rewards, where, scores["geometric_weight"] * scores["reward_weight"], scores, mean_one)


def _weighed(rewards: Tensor, where: Tensor, weight: Tensor, scores: dict[str, Tensor], mean_one: bool) -> Outcome:
    """Standardised advantages times one weight a group, `[N]`, which is 1 with fewer than two scorable rollouts."""
    base = standardised(rewards, where)
    enough = (group_count(rewards, where) >= 2)[:, None]
    weights = torch.where(enough, weight[:, None], 1.0).expand(base.shape)
    if mean_one:
        weights = torch.where(enough, with_mean_one(weights, where & enough), 1.0)
    weights = like_input(weights, rewards).contiguous()
    advantages = like_input(base * weights, rewards)
    return Outcome(advantages, weights, {name: like_input(score, rewards) for name, score in scores.items()})


METHODS: dict[str, Method] = {
    "grpo": grpo,
    "rd_only": rd_only,
    "gcpo_cd": gcpo_cd,
    "gcpo_bot": gcpo_bot,
}
"""Name -> method."""


def resolve(method: str | Method) -> Method:
    """The method of a name in `METHODS` or of a dotted path; a function is returned as it is.

    A dotted path imports its module, so it runs the user's code.

    Args:
        method: e.g. `"gcpo_bot"` or `"my_package.my_module.my_method"`.

    Raises:
        CalibrantError: an unknown name (it names the nearest known one), a module that cannot be imported, a module
            without that function, or a function whose signature is not a method's.

    >>> resolve("gcpo-bot")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: unknown method 'gcpo-bot'; did you mean 'gcpo_bot'? Known: grpo, rd_only, ...
    """
    if callable(method):
        return method
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    if not isinstance(method, str) or "." not in method:
        nearest = _nearest(str(method), METHODS)
        raise CalibrantError(
            f"unknown method {method!r}; did you mean '{nearest}'? Known: {', '.join(METHODS)}; "
            "or give the dotted path of a function"
        )
    found = _imported(method)
    _parameters(found)
    return found


def _imported(path: str) -> Method:
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        hint = "" if not isinstance(error, ModuleNotFoundError) else "; is its folder on PYTHONPATH?"
        raise CalibrantError(
            f"method '{path}': the module '{module_name}' cannot be imported ({type(error).__name__}: {error}){hint}"
        ) from error
    if not hasattr(module, name):
        candidates = [key for key, value in vars(module).items() if callable(value)]
        nearest = f"; did you mean '{_nearest(name, candidates)}'?" if candidates else ""
        raise CalibrantError(f"method '{path}': the module '{module_name}' has no '{name}'{nearest}")
    found: Method = getattr(module, name)
    if not callable(found):
        raise CalibrantError(f"method '{path}' is a {type(found).__name__}, not a function")
    return found


def _nearest(name: str, known: Sequence[str] | dict[str, Method]) -> str:
    plain = name.lower().replace("-", "_")
    return difflib.get_close_matches(plain, list(known), n=1, cutoff=0.0)[0]


def _parameters(method: Method) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(method).parameters)
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise CalibrantError(
                f"method '{_name(method)}': the parameter '{parameter}' names nothing; name each input, and each "
                "hyper-parameter after a bare *"
            )
        if parameter.kind == parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise CalibrantError(f"method '{_name(method)}': the hyper-parameter '{name}' needs a default")
    return parameters


def _name(method: Method) -> str:
    return str(getattr(method, "__name__", type(method).__name__))


def required_inputs(method: str | Method) -> tuple[str, ...]:
    """The inputs that a method names and cannot do without, `rewards` and `where` among them.

    >>> required_inputs("gcpo_bot")
    ('rewards', 'embeddings', 'clusters', 'where')
    """
    parameters = _parameters(resolve(method)).items()
    return tuple(name for name, p in parameters if p.kind != p.KEYWORD_ONLY and p.default is p.empty)


def hyperparameters(method: str | Method) -> dict[str, Any]:
    """The hyper-parameters of a method and their defaults.

    >>> hyperparameters("gcpo_bot")
    {'alpha': 0.6, 'reward_range': (0.0, 2.0), 'mean_one': False}
    """
    return {name: p.default for name, p in _parameters(resolve(method)).items() if p.kind == p.KEYWORD_ONLY}


def summary(method: str | Method) -> str:
    """What a method does, in one line: the first of its docstring.

    >>> summary("grpo")
    'Plain GRPO: group-standardised advantages, every weight 1.'
    """
    return (inspect.getdoc(resolve(method)) or "").partition("\n")[0]


def apply(method: str | Method, groups: Groups, **hyper: Any) -> Outcome:
    """Calls a method with just the inputs that it names.

    Args:
        method: a name, a dotted path or a function.
        groups: rewards and inputs.
        hyper: hyper-parameters; those not given take the method's defaults.

    Returns:
        The method's outcome, detached.

    Raises:
        CalibrantError: an input that the groups do not have, an unknown hyper-parameter, or a result that is not an
            outcome `[N, G]` of finite numbers.

    >>> apply("rd_only", Groups(torch.tensor([[2.0, 0.0]])), alpha=0.0).weights
    tensor([[1., 1.]])
    """
    function = resolve(method)
    check_hyperparameters(function, hyper)
    supplied = {**groups.inputs, "rewards": groups.rewards, "where": groups.where}
    missing = [name for name in required_inputs(function) if name not in supplied]
    if missing:
        raise CalibrantError(
            f"method '{_name(function)}' needs the input {', '.join(map(repr, missing))}; "
            f"the groups have {', '.join(supplied)}"
        )
    named = {name: supplied[name] for name in _parameters(function) if name in supplied}
    with torch.no_grad():
        return _checked(function, function(**named, **hyper), groups.rewards)


def check_hyperparameters(method: str | Method, hyper: Mapping[str, Any]) -> None:
    """Raises CalibrantError, with the nearest name, if a name is not a hyper-parameter of the method."""
    known = hyperparameters(method)
    for name in hyper:
        if name not in known:
            nearest = f"; did you mean '{_nearest(name, list(known))}'? It takes {', '.join(known)}" if known else ""
            takes = nearest or "; it takes none"
            raise CalibrantError(f"method '{_name(resolve(method))}' has no hyper-parameter '{name}'{takes}")


def _checked(method: Method, outcome: Outcome, rewards: Tensor) -> Outcome:
    name = _name(method)
    if not isinstance(outcome, Outcome):
        raise CalibrantError(f"method '{name}' has to return an Outcome, got {type(outcome).__name__}")
    check_shapes(
        f"method '{name}'",
        rewards=(rewards, "N G"),
        advantages=(outcome.advantages, "N G"),
        weights=(outcome.weights, "N G"),
    )
    for score, values in outcome.scores.items():
        check_shapes(f"method '{name}'", **{"rewards": (rewards, "N G"), f"score {score}": (values, "N")})
    for part in ("advantages", "weights"):
        if not torch.isfinite(getattr(outcome, part)).all():
            raise CalibrantError(f"method '{name}' returned {part} that are not finite")
    return outcome
