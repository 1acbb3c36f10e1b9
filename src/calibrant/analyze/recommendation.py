"""The recommendation of an analysis: signal, method, alpha, and the share of groups without reward spread.

The rules are ours, since no source states any:

* Signals are compared on groups with reward spread. Elsewhere every advantage is 0, so that a weight has no effect.
* A signal follows V(q) where the interval of its rank correlation lies above 0, and leads another one where the
  paired interval of their difference does.
* A method is recommended by its weights, whatever signal it reads: the one whose weights follow the signal-to-noise
  ratio of the groups' updates most closely. Where no method's do, or weights hardly vary, plain GRPO.
* alpha is at most the value that keeps the weights of 99% of groups between `LEAST` and `MOST`.
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

from calibrant.files import JsonObject
from calibrant.report.formats import decimal, interval_text, rho_text
from calibrant.report.names import PAPER_ORDER, label

LEAST, MOST = 0.25, 2.0
"""A weight below a quarter nearly drops a group; one above 2 more than doubles its learning rate."""

ENOUGH = 30  # groups with spread that a comparison of signals needs: with fewer an interval of rho is wider than 0.7


LEAST_SPREAD = 0.01  # coefficient of variation below which weights hardly differ


class Route(NamedTuple):
    """How the weight of a method depends on signals, and its default alpha."""

    damps: str | None  # the signal u in 1 - alpha_G u^2, or None
    boosts: str | None  # the signal u in 1 + alpha_G u, or None
    alpha: float


ROUTES = {
    "gcpo_bot": Route("barycentric_transport", "reward_dispersion", 0.6),
    "gcpo_cd": Route("cosine_dispersion", "reward_dispersion", 0.6),
    "grpo_kle": Route("kernel_language_entropy", None, 0.6),
    "rd_only": Route(None, "reward_dispersion", 0.6),
    "gcpo_grad": Route("head_gradient_dispersion", "reward_dispersion", 0.6),
    "gcpo_grad depth=block": Route("block_gradient_dispersion", "reward_dispersion", 0.6),
}
"""Methods with an alpha that can be bounded."""

ENTROPIES = ("kernel_language_entropy",)
"""Signals that a method divides by ln G (as a bound: the kernel's scale is a little finer)."""

NO_SIGNAL = ("reward_mean",)  # columns of the tables that are no candidates: a mean reward is no uncertainty


class Evidence(NamedTuple):
    """The input of the recommendation."""

    counts: Mapping[str, int]  # from `tables.outcome_counts`
    tables: Mapping[str, JsonObject]  # of V(q), by subset
    high: Mapping[str, float]  # signal -> its 99th percentile over groups with spread
    rollouts: int  # G
    weights: JsonObject | None  # `weights.weight_table`


def recommend(evidence: Evidence) -> JsonObject:
    """The recommendation in parts, each None where the data do not support it.

    `signal` (best, rho, its interval, the signals it does not lead), `method` (`chosen_method`), `alpha` (default,
    most, suggested), `groups` (shares), `paper_order`, and `words`, the same in sentences.
    """
    groups = group_shares(evidence.counts)
    table = evidence.tables.get("informative")
    enough = table is not None and table["groups"] >= ENOUGH
    signal = best_signal(table) if enough and table else None
    method = chosen_method(evidence.weights) if enough and evidence.weights else None
    alpha = strength(method, evidence) if method else None
    order = paper_order(evidence.tables.get("without_outliers") or evidence.tables.get("all"))
    words = [
        *_about_signal(signal, table, evidence.counts),
        *_about_method(method, alpha),
        *_about_groups(groups),
        *_about_order(order),
    ]
    return {"signal": signal, "method": method, "alpha": alpha, "groups": groups, "paper_order": order, "words": words}


def best_signal(table: JsonObject) -> JsonObject | None:
    """The signal with the largest rank correlation, and those whose difference to it may be 0."""
    rows = {name: row for name, row in table["rows"].items() if name not in NO_SIGNAL}
    if not rows:
        return None
    best = max(rows, key=lambda name: rows[name]["rho"])
    beside = [name for name, (_, low, _, _) in table["differences"].get(best, {}).items() if low <= 0 and name in rows]
    beside.sort(key=lambda name: -rows[name]["rho"])
    kept = {key: rows[best][key] for key in ("rho", "low", "high", "auc")}
    return {"name": best, **kept, "follows": rows[best]["low"] > 0, "not_led": beside}


def chosen_method(weights: JsonObject) -> JsonObject:
    """The method whose weights follow the signal-to-noise ratio most closely; plain GRPO if none of them does.

    `name`, `follows` and `variance` (rank correlations with the ratio and with V(q), value, low, high), `cv`,
    `beside` (methods whose difference to it may be 0).
    """
    rows = weights["rows"]
    follow = {
        name: row for name, row in rows.items()
        if row["snr"] is not None and row["snr"][1] > 0 and row["cv"] >= LEAST_SPREAD
    }  # fmt: skip
    if not follow:
        return {"name": "grpo", "follows": None, "variance": None, "cv": 0.0, "beside": []}
    best = max(follow, key=lambda name: follow[name]["snr"][0])
    beside = [name for name in follow if name != best and weights["differences"][best][name][1] <= 0]
    row = rows[best]
    return {"name": best, "follows": row["snr"], "variance": row["variance"], "cv": row["cv"], "beside": beside}


def strength(method: JsonObject, evidence: Evidence) -> JsonObject | None:
    """The largest alpha with `alpha_G u^2 <= 1 - LEAST` and `alpha_G u <= MOST - 1` at the 99th percentile of u.

    `alpha_G = alpha / ln G`. None for a method whose weight has another form.
    """
    route = ROUTES.get(str(method["name"]))
    if route is None:
        return None
    log, damped, boosted = math.log(evidence.rollouts), _high(evidence, route.damps), _high(evidence, route.boosts)
    bounds = [(1 - LEAST) * log / damped**2] if damped > 0 else []
    bounds += [(MOST - 1) * log / boosted] if boosted > 0 else []
    if not bounds:
        return None
    suggested = min(route.alpha, *bounds)
    lowest, highest = 1 - suggested / log * damped**2, 1 + suggested / log * boosted
    most = min(bounds)
    return {"default": route.alpha, "most": most, "suggested": suggested, "lowest": lowest, "highest": highest}


def _high(evidence: Evidence, signal: str | None) -> float:
    u = evidence.high.get(signal or "", 0.0)
    return min(1.0, u / math.log(evidence.rollouts)) if signal in ENTROPIES else u


def group_shares(counts: Mapping[str, int]) -> dict[str, float] | None:
    """Shares of groups by outcome; None without groups."""
    total = counts["groups"]
    return {name: count / total for name, count in counts.items() if name != "groups"} if total else None


def paper_order(table: JsonObject | None) -> JsonObject | None:
    """Whether BoT, CD, semantic entropy and token entropy follow V(q) in the order of the paper.

    `found`, the four by rho; `holds`; `clear`, whether each difference between neighbours of the paper's order has an
    interval above 0; `contradicted`, whether one has an interval below 0. None where one of the four is missing.
    """
    if table is None or any(name not in table["rows"] for name in PAPER_ORDER):
        return None
    rho = {name: table["rows"][name]["rho"] for name in PAPER_ORDER}
    pairs = list(itertools.pairwise(PAPER_ORDER))
    return {
        "found": dict(sorted(rho.items(), key=lambda item: -item[1])),
        "holds": all(rho[a] > rho[b] for a, b in pairs),
        "clear": all(table["differences"][a][b][1] > 0 for a, b in pairs),
        "contradicted": any(table["differences"][a][b][2] < 0 for a, b in pairs),
        "groups": table["groups"],
    }


def _about_signal(signal: JsonObject | None, table: JsonObject | None, counts: Mapping[str, int]) -> list[str]:
    if signal is None or table is None:
        return [
            f"Too few groups to say which signal follows the gradient variance: {counts['informative']} of "
            f"{counts['groups']} have reward spread, and {ENOUGH} are needed. Give more --queries."
        ]
    result = f"{label(signal['name'])}: rank correlation {rho_text(signal)} with V(q) over {table['groups']} groups"
    if not signal["follows"]:
        return [f"No signal follows the gradient variance here. The closest is {result}, and its interval reaches 0."]
    beside = signal["not_led"]
    if not beside:
        return [f"Signal: {result}. It leads every other signal."]
    listed = ", ".join(f"{label(n)} ({decimal(table['rows'][n]['rho'])})" for n in beside[:4])
    more = f" and {len(beside) - 4} more" if len(beside) > 4 else ""
    return [f"Signal: {result}. The data do not tell it from {listed}{more}."]


def _about_method(method: JsonObject | None, alpha: JsonObject | None) -> list[str]:
    if method is None:
        return []
    if method["follows"] is None:
        return [
            "Method: grpo. No method's weights follow the signal-to-noise ratio of the updates here and vary by more "
            f"than {LEAST_SPREAD:.0%}, so that weights would be noise."
        ]
    text = (
        f"Method: {method['name']}, whose weights follow the signal-to-noise ratio of the updates "
        f"({interval_text(*method['follows'])}; V(q): {interval_text(*method['variance'])}) and have a coefficient of "
        f"variation of {method['cv']:.0%}."
    )
    if method["beside"]:
        text += f" By this measure the data do not tell it from {', '.join(method['beside'])}."
    return [text, *_about_alpha(alpha)]


def _about_alpha(alpha: JsonObject | None) -> list[str]:
    if alpha is None:
        return []
    reach = f"then 99% of its factors lie between {alpha['lowest']:.2f} and {alpha['highest']:.2f}"
    if alpha["suggested"] < alpha["default"]:
        return [
            f"Alpha: at most {alpha['most']:.2g}, less than the default of {alpha['default']:g}; {reach}. Pass --alpha "
            f"{math.floor(alpha['suggested'] * 100) / 100:g}."
        ]
    return [
        f"Alpha: the default of {alpha['default']:g} is safe, {reach}; up to {alpha['most']:.2g} no factor would fall "
        f"below {LEAST} or rise above {MOST:g} in 99% of groups."
    ]


def _about_groups(groups: Mapping[str, float] | None) -> list[str]:
    if groups is None:
        return []
    idle = 1 - groups["informative"]
    if idle == 0:
        return ["Every group has reward spread."]
    text = (
        f"Groups without reward spread: {idle:.1%} (all right {groups['all_right']:.1%}, all wrong "
        f"{groups['all_wrong']:.1%}, otherwise equal {groups['equal']:.1%}, unscorable {groups['unscorable']:.1%})."
    )
    return [text, _advice(groups)] if idle > 0.5 else [text]


def _advice(groups: Mapping[str, float]) -> str:
    if groups["unscorable"] > max(groups["all_right"], groups["all_wrong"], groups["equal"]):
        advice = "fix the reward function, which scores few."
    elif groups["all_right"] > groups["all_wrong"]:
        advice = "the task is too easy for this model. Use harder prompts, or leave out those that it always solves."
    else:
        advice = (
            "the task is too hard for this model, or its reward too coarse. Use easier prompts, a supervised warm "
            "start, more rollouts, or a reward with partial credit."
        )
    return f"Most groups have no gradient, whatever their weight: {advice}"


def _about_order(order: JsonObject | None) -> list[str]:
    if order is None:
        return []
    listed = ", ".join(f"{label(name)} {decimal(rho)}" for name, rho in order["found"].items())
    if order["holds"]:
        clause = f"is found here, {'and every' if order['clear'] else 'but not every'} step is significant"
    else:
        clause = f"is not found here, {'and one' if order['contradicted'] else 'but no'} step is significantly reversed"
    return [f"The paper's order (BoT, CD, semantic entropy, token entropy) {clause}: {listed}."]
