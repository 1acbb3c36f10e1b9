"""From measured groups to `analysis.json`: how closely each signal follows each target, on which groups."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.analyze.filtering import filtering
from calibrant.analyze.recommendation import Evidence, recommend
from calibrant.analyze.weights import weight_table
from calibrant.errors import CalibrantError
from calibrant.files import JsonObject, write_json
from calibrant.report.analysis_files import Analysis
from calibrant.report.names import OUTCOMES, SIGNALS, SUBSETS, TARGETS
from calibrant.statistics import Association, PairedBootstrap, association, without_outliers

OUTLIERS = 20  # number of groups with the largest V(q) that are excluded as outliers (GCPO, appendix D.1)
PAPER_SHARE = 0.02
"""20 of GCPO's 1,000 queries; the share that is excluded where 20 would be more than a tenth of all groups (c)."""

FOLDS = 5  # number of cross-validation folds, and the fewest groups that a table is made of
RESAMPLES = 1000  # number of bootstrap resamples
COVERAGE = 0.9
"""Smallest share of groups with a value for a signal to be in a table; groups that lack one of those are excluded."""


class Columns(NamedTuple):
    """An analysis as columns: signals `[S, N]`, confidences negated, and targets, each `[N]`."""

    names: list[str]
    signals: Tensor
    targets: dict[str, Tensor]
    outcomes: list[str]


def write_results(analysis: Analysis) -> JsonObject:
    """Computes every table and the recommendation, writes them to `analysis.json` and returns them."""
    options = analysis.options()
    settings = options["settings"]
    queries = settings["queries"]
    columns = read_columns(analysis.lines(queries))
    if not columns.outcomes:
        raise CalibrantError(f"'{analysis.path}' holds no group yet")
    tables, counts = association_tables(columns), outcome_counts(columns)
    rollouts = max(line["rollouts"] for line in analysis.lines(queries))
    weights = weight_table(analysis.lines(queries), RESAMPLES)
    evidence = Evidence(counts, tables["gradient_variance"], high_percentiles(columns), rollouts, weights)
    results = {
        "task": settings["task"],
        "model": settings["model"],
        "rollouts": rollouts,
        "parameters": (options.get("identity") or {}).get("parameters"),
        "counts": counts,
        "outliers": outliers(int(subsets(columns)["all"].sum())),
        "between_clusters": between_shares(analysis.lines(queries)),
        "signals": distributions(columns),
        "tables": tables,
        "weights": weights,
        "filtering": filtering(
            columns.names, columns.signals, columns.targets["gradient_variance"], columns.targets["mean_norm_squared"]
        ),
        "recommendation": recommend(evidence),
    }
    write_json(analysis.results, results)
    return results


def read_columns(lines: Iterable[JsonObject]) -> Columns:
    """Lines of `groups.jsonl` as columns; NaN where a number is missing."""
    values: list[list[float]] = []
    outcomes: list[str] = []
    for line in lines:
        targets = {**line["truth"], "success_rate": line["success_rate"]}
        row = [line["signals"].get(name) for name in SIGNALS] + [targets.get(name) for name in TARGETS]
        values.append([math.nan if x is None else float(x) for x in row])
        outcomes.append(line["outcome"] if line["scorable"] > 1 else "unscorable")
    table = torch.tensor(values, dtype=torch.float64).reshape(len(values), len(SIGNALS) + len(TARGETS)).T
    signs = torch.tensor([signal.sign for signal in SIGNALS.values()], dtype=torch.float64)
    signals = table[: len(SIGNALS)] * signs[:, None]
    return Columns(list(SIGNALS), signals, dict(zip(TARGETS, table[len(SIGNALS) :], strict=True)), outcomes)


def outcome_counts(columns: Columns) -> dict[str, int]:
    """Number of groups, in all and per outcome."""
    kinds = (*OUTCOMES, "unscorable")
    return {"groups": len(columns.outcomes), **{kind: columns.outcomes.count(kind) for kind in kinds}}


def outliers(groups: int) -> int:
    """Number of the largest V(q) that the second table leaves out.

    >>> outliers(1000), outliers(200), outliers(100), outliers(20)
    (20, 20, 2, 0)
    """
    return OUTLIERS if groups >= 10 * OUTLIERS else int(PAPER_SHARE * groups)


def subsets(columns: Columns) -> dict[str, Tensor]:
    """Subset of `names.SUBSETS` -> its groups, `[N]` boolean. "without_outliers" is missing if `outliers` is 0."""
    variance = columns.targets["gradient_variance"]
    measured = ~variance.isnan()
    spread = torch.tensor([outcome == "informative" for outcome in columns.outcomes], dtype=torch.bool)
    chosen = {"all": measured, "informative": measured & spread}
    count = outliers(int(measured.sum()))
    return chosen | ({"without_outliers": without_outliers(variance, count, measured)} if count else {})


def association_tables(columns: Columns) -> dict[str, dict[str, JsonObject]]:
    """Target of `TARGETS` -> subset of `SUBSETS` -> `association_table`; none for fewer than `FOLDS` groups.

    `without_outliers` excludes by V(q), so that V(q) alone has a table of it.
    """
    result: dict[str, dict[str, JsonObject]] = {target: {} for target in TARGETS}
    chosen = subsets(columns)
    for target in TARGETS:
        for subset in SUBSETS:
            if subset in chosen and (target == "gradient_variance" or subset != "without_outliers"):
                table = association_table(columns, target, chosen[subset])
                result[target] |= {subset: table} if table is not None else {}
    return result


def association_table(columns: Columns, target: str, where: Tensor) -> JsonObject | None:
    """How closely each signal follows a target of `TARGETS` on the groups `where` `[N]`; None for fewer than `FOLDS`.

    `groups`, the number of groups used; `baseline_mae`; `rows`, signal -> `rho`, `p`, the 95% bootstrap interval `low`
    and `high`, `auc` with interval, `precision`, `mae` and `held_out` (rank correlation on held-out folds);
    `differences` (of V(q) alone), signal -> other signal -> difference of rho, lower end, upper end, p;
    `auc_differences`, the same of AUC (GCPO, appendix D.5); `left_out`, the signals that too many groups lack.
    """
    y = columns.targets[target]
    where = where & ~y.isnan()
    if int(where.sum()) < FOLDS:
        return None
    shares = (~columns.signals[:, where].isnan()).double().mean(1)
    kept = [i for i, share in enumerate(shares.tolist()) if share >= COVERAGE]
    where = where & ~columns.signals[kept].isnan().any(0)
    if not kept or int(where.sum()) < FOLDS:
        return None
    names = [columns.names[i] for i in kept]
    result = association(
        columns.signals[kept], y, where=where, outliers=0, folds=FOLDS, resamples=RESAMPLES,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return {
        "groups": int(result.kept.sum()),
        "baseline_mae": result.fit.baseline_mae.item(),
        "rows": {name: _row(result, i) for i, name in enumerate(names)},
        "differences": _differences(result.spearman_bootstrap, names) if target == "gradient_variance" else {},
        "auc_differences": _differences(result.auc_bootstrap, names) if target == "gradient_variance" else {},
        "left_out": [name for name in columns.names if name not in names],
    }


def _row(result: Association, i: int) -> dict[str, float]:
    rank, area = result.spearman_bootstrap, result.auc_bootstrap
    columns = {"rho": result.spearman.rho, "p": result.spearman.p, "low": rank.low, "high": rank.high}
    columns |= {"auc": result.auc, "auc_low": area.low, "auc_high": area.high, "precision": result.precision}
    columns |= {"mae": result.fit.mae, "held_out": result.fit.spearman}
    return {name: values[i].item() for name, values in columns.items()}


def _differences(found: PairedBootstrap, names: list[str]) -> dict[str, dict[str, list[float]]]:
    """Signal -> other signal -> difference of rho or AUC, lower end, upper end, p."""
    parts = (found.difference, found.difference_low, found.difference_high, found.p)
    return {
        first: {other: [x[i, j].item() for x in parts] for j, other in enumerate(names) if j != i}
        for i, first in enumerate(names)
    }


def between_shares(lines: Iterable[JsonObject]) -> dict[str, float | None]:
    """Share of the variance between clusters, with and without advantages, over all groups; None without variance."""
    sums = dict.fromkeys(("variance_intra", "variance_inter", "score_variance_intra", "score_variance_inter"), 0.0)
    for line in lines:
        for name in sums:
            sums[name] += line["truth"].get(name) or 0.0
    totals = {kind: sums[f"{kind}_intra"] + sums[f"{kind}_inter"] for kind in ("variance", "score_variance")}
    return {kind: sums[f"{kind}_inter"] / total if total else None for kind, total in totals.items()}


def distributions(columns: Columns) -> dict[str, dict[str, float]]:
    """Signal -> mean, standard deviation and quantiles as measured, over the groups that have it."""
    result = {}
    for name, values in zip(columns.names, columns.signals, strict=True):
        measured = values[~values.isnan()] * SIGNALS[name].sign
        if len(measured):
            quantiles = torch.quantile(measured, torch.tensor([0.01, 0.5, 0.99], dtype=measured.dtype)).tolist()
            numbers = [measured.mean().item(), measured.std(correction=0).item(), *quantiles]
            result[name] = dict(zip(("mean", "std", "q01", "median", "q99"), numbers, strict=True))
    return result


def high_percentiles(columns: Columns) -> dict[str, float]:
    """Signal -> its 99th percentile, confidences negated, over groups with reward spread."""
    where = subsets(columns)["informative"]
    measured = {
        name: values[where & values.isfinite()] for name, values in zip(columns.names, columns.signals, strict=True)
    }
    return {name: torch.quantile(values, 0.99).item() for name, values in measured.items() if len(values)}
