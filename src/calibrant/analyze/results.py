"""From measured groups to `analysis.json`: counts, tables and the recommendation."""

import math
from typing import Any

import torch

from calibrant.analyze.recommendation import Evidence, recommend
from calibrant.analyze.tables import Columns, columns, counts, outliers, shares, subsets, tables
from calibrant.errors import CalibrantError
from calibrant.files import write_json
from calibrant.methods import METHODS
from calibrant.report.analysis_files import Analysis
from calibrant.report.names import SIGNALS


def write_results(analysis: Analysis) -> dict[str, Any]:
    """Computes every table and the recommendation, and writes `analysis.json`.

    Raises:
        CalibrantError: no group is measured.
    """
    settings = analysis.options()["settings"]
    queries = settings["queries"]
    found = columns(analysis.lines(queries))
    if not found.outcomes:
        raise CalibrantError(f"'{analysis.path}' holds no group yet")
    made = tables(found)
    size = max(line["rollouts"] for line in analysis.lines(queries))
    results = {
        "task": settings["task"],
        "model": settings["model"],
        "rollouts": size,
        "counts": counts(found),
        "outliers": outliers(int(subsets(found)["all"].sum())),
        "between_clusters": shares(analysis.lines(queries)),
        "signals": described(found),
        "tables": made,
    }
    evidence = Evidence(counts(found), made["gradient_variance"], high(found), size, METHODS)
    results["recommendation"] = recommend(evidence)
    write_json(analysis.results, results)
    return results


def described(found: Columns) -> dict[str, dict[str, float]]:
    """Mean, spread and quantiles of each signal as it is, over the groups that have it."""
    result = {}
    for name, values in zip(found.names, found.signals, strict=True):
        known = values[~values.isnan()] * SIGNALS[name].sign
        if len(known):
            middle = torch.quantile(known, torch.tensor([0.01, 0.5, 0.99], dtype=known.dtype)).tolist()
            result[name] = {
                "mean": known.mean().item(),
                "std": known.std(correction=0).item(),
                **dict(zip(("q01", "median", "q99"), middle, strict=True)),
            }
    return result


def high(found: Columns) -> dict[str, float]:
    """The 99th percentile of each signal that grows with doubt, over groups with spread."""
    where = subsets(found)["informative"]
    result = {}
    for name, values in zip(found.names, found.signals, strict=True):
        known = values[where & ~values.isnan()]
        x = torch.quantile(known, 0.99).item() if len(known) else math.nan
        if math.isfinite(x):
            result[name] = x
    return result
