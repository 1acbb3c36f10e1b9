"""The statistics of an analysis: how closely each signal follows each target, on which groups."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from calibrant.report.names import OUTCOMES, SIGNALS, SUBSETS, TARGETS
from calibrant.statistics import Association, association, without_outliers

OUTLIERS = 20
"""How many of the largest V(q) are removed (GCPO, D.1)."""

PAPER_SHARE = 0.02
"""The share that 20 are of the paper's 1,000 queries: removed where 20 would be more than a tenth of all (c)."""

FOLDS = 5
RESAMPLES = 1000
KNOWN = 0.9
"""A signal that more groups than one in ten lack is left out; groups that lack one of the others are."""

Table = dict[str, Any]


class Columns(NamedTuple):
    """An analysis as columns: signals `[S, N]`, turned so that they grow with doubt, and targets, each `[N]`."""

    names: list[str]
    signals: Tensor
    targets: dict[str, Tensor]
    outcomes: list[str]


def columns(lines: Iterable[Mapping[str, Any]]) -> Columns:
    """Lines of `groups.jsonl` as columns; NaN where a number is missing. Only numbers are kept of a line."""
    values: list[list[float]] = []
    outcomes: list[str] = []
    for line in lines:
        known = {**line["truth"], "success_rate": line["success_rate"]}
        found = [line["signals"].get(name) for name in SIGNALS] + [known.get(name) for name in TARGETS]
        values.append([math.nan if x is None else float(x) for x in found])
        outcomes.append(line["outcome"] if line["scorable"] > 1 else "unscorable")
    table = torch.tensor(values, dtype=torch.float64).reshape(len(values), len(SIGNALS) + len(TARGETS)).T
    signs = torch.tensor([signal.sign for signal in SIGNALS.values()], dtype=torch.float64)
    signals = table[: len(SIGNALS)] * signs[:, None]
    return Columns(list(SIGNALS), signals, dict(zip(TARGETS, table[len(SIGNALS) :], strict=True)), outcomes)


def counts(found: Columns) -> dict[str, int]:
    """How many groups there are of each outcome."""
    kinds = (*OUTCOMES, "unscorable")
    return {"groups": len(found.outcomes), **{kind: found.outcomes.count(kind) for kind in kinds}}


def outliers(groups: int) -> int:
    """How many of the largest V(q) the second table leaves out.

    >>> outliers(1000), outliers(200), outliers(100), outliers(20)
    (20, 20, 2, 0)
    """
    return OUTLIERS if groups >= 10 * OUTLIERS else int(PAPER_SHARE * groups)


def subsets(found: Columns) -> dict[str, Tensor]:
    """Which groups a table is of, `[N]` boolean each; see `names.SUBSETS`. Of few groups none is an outlier."""
    variance = found.targets["gradient_variance"]
    known = ~variance.isnan()
    spread = torch.tensor([outcome == "informative" for outcome in found.outcomes], dtype=torch.bool)
    chosen = {"all": known, "informative": known & spread}
    count = outliers(int(known.sum()))
    return chosen | ({"without_outliers": without_outliers(variance, count, known)} if count else {})


def tables(found: Columns) -> dict[str, dict[str, Table]]:
    """Every table: target -> subset -> table. V(q) has all three subsets, the others two.

    Returns:
        Each table as of `table`; one with too few groups is left out.
    """
    chosen = subsets(found)
    result: dict[str, dict[str, Table]] = {}
    for target in TARGETS:
        some = [k for k in SUBSETS if k in chosen and (target == "gradient_variance" or k != "without_outliers")]
        made = {subset: table(found, target, chosen[subset]) for subset in some}
        result[target] = {subset: each for subset, each in made.items() if each is not None}
    return result


def table(found: Columns, target: str, where: Tensor) -> Table | None:
    """How closely each signal follows a target on some groups.

    Args:
        found: the analysis.
        target: a name of `TARGETS`.
        where: `[N]`, boolean.

    Returns:
        `groups`, how many the figures are of; `baseline_mae`; `rows`, signal -> `rho`, `p`, the 95% bootstrap
        interval `low` and `high`, `auc` with interval, `precision`, `mae` and `held_out` (rank correlation on
        held-out folds); `differences` (of V(q) alone), signal -> other signal -> difference of rho, lower end, upper
        end, p; `left_out`, the signals that too many groups lack. None with fewer groups than folds.
    """
    y = found.targets[target]
    where = where & ~y.isnan()
    if int(where.sum()) < FOLDS:
        return None
    shares = (~found.signals[:, where].isnan()).double().mean(1)
    kept = [i for i, share in enumerate(shares.tolist()) if share >= KNOWN]
    where = where & ~found.signals[kept].isnan().any(0)
    if not kept or int(where.sum()) < FOLDS:
        return None
    names = [found.names[i] for i in kept]
    result = association(
        found.signals[kept], y, where=where, outliers=0, folds=FOLDS, resamples=RESAMPLES,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return {
        "groups": int(result.kept.sum()),
        "baseline_mae": result.fit.baseline_mae.item(),
        "rows": {name: _row(result, i) for i, name in enumerate(names)},
        "differences": _differences(result, names) if target == "gradient_variance" else {},
        "left_out": [name for name in found.names if name not in names],
    }


def _row(result: Association, i: int) -> dict[str, float]:
    rank, area = result.spearman_bootstrap, result.auc_bootstrap
    return {
        "rho": result.spearman.rho[i].item(),
        "p": result.spearman.p[i].item(),
        "low": rank.low[i].item(),
        "high": rank.high[i].item(),
        "auc": result.auc[i].item(),
        "auc_low": area.low[i].item(),
        "auc_high": area.high[i].item(),
        "precision": result.precision[i].item(),
        "mae": result.fit.mae[i].item(),
        "held_out": result.fit.spearman[i].item(),
    }


def _differences(result: Association, names: list[str]) -> dict[str, dict[str, list[float]]]:
    """Of rho: signal -> other signal -> difference, lower end, upper end, p."""
    rank = result.spearman_bootstrap
    parts = (rank.difference, rank.difference_low, rank.difference_high, rank.p)
    return {
        first: {other: [x[i, j].item() for x in parts] for j, other in enumerate(names) if j != i}
        for i, first in enumerate(names)
    }


def shares(lines: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Which part of the variance, with advantages and without, lies between clusters; over all groups together."""
    sums = dict.fromkeys(("variance_intra", "variance_inter", "score_variance_intra", "score_variance_inter"), 0.0)
    for line in lines:
        for name in sums:
            sums[name] += line["truth"].get(name) or 0.0
    totals = {kind: sums[f"{kind}_intra"] + sums[f"{kind}_inter"] for kind in ("variance", "score_variance")}
    return {kind: sums[f"{kind}_inter"] / total if total else None for kind, total in totals.items()}
