"""The weight that each method would give each group, and what weighting does to noise and signal of the updates.

With `g` the mean gradient of a group of n rollouts, its noise is `N = S^2 / n = V / (n - 1)` and its signal
`|theta|^2`, of which `|g|^2 - N` is an estimate (docs/theory.md). The signal-to-noise ratio is `|g|^2 / N`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.advantages import standardised
from calibrant.errors import CalibrantError
from calibrant.files import JsonObject
from calibrant.groups import Groups, has_spread
from calibrant.methods import METHODS, apply, hyperparameters, read_inputs
from calibrant.scorer import trainer_bases
from calibrant.statistics import paired_bootstrap

WEIGHED: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in METHODS},
    **{f"{name} depth=block": (name, {"depth": "block"}) for name in ("gcpo_grad", "gradient_snr")},
}
"""Name in tables -> method and options."""

FEWEST = 5  # groups that a table is made of


def group_weights(
    rewards: Tensor, where: Tensor, inputs: Mapping[str, Tensor], reward_range: tuple[float, float]
) -> dict[str, float | None]:
    """Name in `WEIGHED` -> weight of one group, `rewards [1, G]`; none for a group without reward spread.

    `mean_i |A~_i| / mean_i |A_i|` with the advantages that the method trains on and those of GRPO: what multiplies the
    size of GRPO's update. `inputs` has `total_rewards`, which advantages are made of. None for a method whose inputs
    are not here, or with a memory of earlier groups.
    """
    total = inputs["total_rewards"].double()
    if not bool(has_spread(total, where)):
        return {}
    groups = Groups(rewards.double(), {**inputs, "where": where})
    bases = trainer_bases(standardised(total, where), total)
    plain = bases["standardised"].abs().mean()
    found: dict[str, float | None] = {}
    for name, (method, options) in WEIGHED.items():
        given = {"reward_range": reward_range} if "reward_range" in hyperparameters(method) else {}
        found[name] = None
        if {*read_inputs(method, options)} <= {*groups.inputs, "rewards"}:
            advantages = _advantages(method, groups, bases, given | options)
            found[name] = None if advantages is None else float(advantages.double().abs().mean() / plain)
    return found


def _advantages(method: str, groups: Groups, bases: dict[str, Tensor], options: dict[str, Any]) -> Tensor | None:
    try:
        outcome = apply(method, groups, bases=bases, **options)
    except CalibrantError:  # an input that it can do without elsewhere, such as verdicts
        return None
    return None if outcome.state else outcome.advantages


class Weighted(NamedTuple):
    """Groups with reward spread: weights by method, and what they are compared with, each `[N]`."""

    weights: dict[str, Tensor]
    variance: Tensor  # V(q)
    squared_norm: Tensor  # |g|^2
    noise: Tensor  # V / (n - 1)

    @property
    def ratio(self) -> Tensor:
        """The signal-to-noise ratio; infinite where there is no noise."""
        return self.squared_norm / self.noise


def read_weights(lines: Iterable[JsonObject]) -> Weighted:
    """The groups with reward spread whose gradients and weights were measured."""
    kept = [
        line for line in lines
        if line["outcome"] == "informative" and line.get("weights") and line["truth"].get("gradient_variance")
    ]  # fmt: skip

    def column(values: Iterable[float | None]) -> Tensor:
        return torch.tensor([math.nan if x is None else float(x) for x in values], dtype=torch.float64)

    variance = column(line["truth"]["gradient_variance"] for line in kept)
    others = column(line["scorable"] - 1 for line in kept)
    weights = {name: column(line["weights"].get(name) for line in kept) for name in WEIGHED}
    complete = {name: values for name, values in weights.items() if not bool(values.isnan().any())}
    norms = column(line["truth"].get("mean_norm_squared") for line in kept)
    return Weighted(complete, variance, norms, variance / others)


def weight_table(lines: Iterable[JsonObject], resamples: int) -> JsonObject | None:
    """For each method the spread of its weights, what they follow, and what they do to the updates.

    `rows`, name -> `mean`, `cv` (coefficient of variation), `variance` and `snr` (rank correlation with V(q) and with
    the signal-to-noise ratio, each value, low, high; None for equal weights), `noise`, `bias`, `signal` (`effect`);
    `differences` of `snr`, name -> other name -> value, low, high; `groups`. None for fewer than `FEWEST` groups.
    """
    found = read_weights(lines)
    if len(found.variance) < FEWEST or not found.weights:
        return None
    cv = {name: float(w.std(correction=0) / w.mean()) if w.mean() > 0 else 0.0 for name, w in found.weights.items()}
    rows: JsonObject = {
        name: {"mean": float(w.mean()), "cv": cv[name], "variance": None, "snr": None, **effect(w, found)}
        for name, w in found.weights.items()
    }
    varied = [name for name in rows if cv[name] > 1e-6]
    differences: JsonObject = {}
    if varied:
        stacked = torch.stack([found.weights[name] for name in varied])
        for key, target in (("variance", found.variance), ("snr", found.ratio)):
            generator = torch.Generator().manual_seed(0)
            ranks = paired_bootstrap(stacked, target, resamples=resamples, generator=generator)
            for i, name in enumerate(varied):
                rows[name][key] = [float(x[i]) for x in (ranks.value, ranks.low, ranks.high)]
        parts = (ranks.difference, ranks.difference_low, ranks.difference_high)
        differences = {
            a: {b: [float(x[i, j]) for x in parts] for j, b in enumerate(varied) if j != i}
            for i, a in enumerate(varied)
        }
    return {"groups": len(found.variance), "rows": rows, "differences": differences}


def effect(weights: Tensor, found: Weighted) -> dict[str, float]:
    """What weights `[N]` do to the variance of the updates, in units of the noise of plain GRPO, and to their signal.

    The weights are divided by their mean, which is a learning rate. `noise = E[w^2 N] / E[N]` and
    `bias = Var(w) E|theta|^2 / E[N]` are the two terms of `Var(w g) ~ E[w^2 Var(g | q)] + Var(w) |E[g | q]|^2`;
    `signal = E[w |theta|^2] / E|theta|^2` is what is left of the signal, 1 for equal weights.

    Reference: GCPO, appendix F.3 (b), an approximation: w and |theta|^2 are taken as independent in the second term.
    """
    w = weights / weights.mean() if weights.mean() > 0 else torch.zeros_like(weights)
    theta, noise = found.squared_norm - found.noise, found.noise.mean()
    signal = theta.mean().clamp(min=0.0)
    kept = float((w * theta).mean() / signal) if signal > 0 else math.nan
    return {
        "noise": float((w.square() * found.noise).mean() / noise),
        "bias": float(w.var(correction=0) * signal / noise),
        "signal": kept if math.isfinite(kept) else 0.0,
    }
