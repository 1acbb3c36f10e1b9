"""From measured groups to `analysis.json`: counts, tables and the recommendation."""

import torch

from calibrant.analyze.recommendation import Evidence, recommend
from calibrant.analyze.tables import (
    Columns,
    association_tables,
    between_shares,
    outcome_counts,
    outliers,
    read_columns,
    subsets,
)
from calibrant.errors import CalibrantError
from calibrant.files import write_json
from calibrant.methods import METHODS
from calibrant.report.analysis_files import Analysis
from calibrant.report.names import SIGNALS
from calibrant.report.reading import JsonObject


def write_results(analysis: Analysis) -> JsonObject:
    """Computes every table and the recommendation, writes them to `analysis.json` and returns them."""
    settings = analysis.options()["settings"]
    queries = settings["queries"]
    columns = read_columns(analysis.lines(queries))
    if not columns.outcomes:
        raise CalibrantError(f"'{analysis.path}' holds no group yet")
    tables, counts = association_tables(columns), outcome_counts(columns)
    rollouts = max(line["rollouts"] for line in analysis.lines(queries))
    evidence = Evidence(counts, tables["gradient_variance"], high_percentiles(columns), rollouts, METHODS)
    results = {
        "task": settings["task"],
        "model": settings["model"],
        "rollouts": rollouts,
        "counts": counts,
        "outliers": outliers(int(subsets(columns)["all"].sum())),
        "between_clusters": between_shares(analysis.lines(queries)),
        "signals": distributions(columns),
        "tables": tables,
        "recommendation": recommend(evidence),
    }
    write_json(analysis.results, results)
    return results


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
