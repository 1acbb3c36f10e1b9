"""Measure, before training, which uncertainty signal follows the gradient variance of a model on its data.

Groups of answers are sampled (or read, with --from-rollouts). For each group (a query q and its answers) the exact
variance V(q) of its policy gradient is computed, and every signal that a method can read. Tables and figures are those
of the GCPO paper (tables 3 and 4, figure 1, appendix D); the recommendation names a signal, a method, an upper bound
for alpha, and the share of groups with reward spread. An interrupted analysis is continued by the same command with
the same --out.
"""

import argparse
from pathlib import Path

from calibrant.analyze.settings import AnalyzeSettings, SelectionOptions, resolve_settings
from calibrant.cli.recipes import print_recipe
from calibrant.errors import Stopped
from calibrant.files import JsonObject
from calibrant.options import add_arguments, declared, read

EXAMPLES = """examples:
  calibrant analyze
  calibrant analyze --recipe gcpo
  calibrant analyze --model Qwen/Qwen2.5-1.5B-Instruct --task narrativeqa --queries 1000
  calibrant analyze --model runs/places-gcpo_bot-seed0 --from-rollouts judged/rollouts.parquet
  calibrant analyze --model my_model --task qasper --parameters 'model.layers.2?.*' --out runs/late_layers
  calibrant analyze --write-selection teaching.jsonl --success-between 0.1 0.9   # then train --selection teaching.jsonl
  calibrant analyze --entailment-model roberta-large-mnli --entailment-dtype bfloat16
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--out", metavar="DIR", help="directory (default: runs/analyze-TASK-MODEL-seedN, or -FILE)")
    add_arguments(parser, AnalyzeSettings)
    add_arguments(parser, SelectionOptions)


def run(options: argparse.Namespace) -> int:
    """Measures, and prints tables and the recommendation."""
    given = {name: value for name, value in vars(options).items() if name != "out"}
    selection = read(SelectionOptions, {name: given.pop(name) for name in declared(SelectionOptions) if name in given})
    settings = resolve_settings(given)
    if settings.recipe:
        print_recipe(settings.recipe, settings)
    from calibrant.analyze.collect import collect
    from calibrant.analyze.selection import check_selection, write_selection
    from calibrant.analyze.store import analysis_path
    from calibrant.analyze.tables import write_results
    from calibrant.report import write_analysis_report

    check_selection(selection)
    path = Path(options.out) if options.out else analysis_path(settings)
    try:
        analysis = collect(settings, path)
    except KeyboardInterrupt:
        raise Stopped(f"stopped; continue with the same command and --out {path}") from None
    print_results(write_results(analysis))
    if selection.write_selection:
        print(f"{write_selection(analysis, selection)} prompts selected: {selection.write_selection}")
    print(f"directory: {path}\nreport:    {write_analysis_report(path)}")
    return 0


def print_results(results: JsonObject) -> None:
    """Prints the rank correlations of signals with V(q) and with the success rate, and the recommendation."""
    counts, tables = results["counts"], results["tables"]
    print(
        f"\n{results['task']}, {results['model']}: {counts['groups']} groups of {results['rollouts']} answers, "
        f"{counts['informative']} with reward spread"
    )
    if results["parameters"]:
        print(f"V(q) is the variance of the gradient of {results['parameters']}")
    variance, success = tables["gradient_variance"], tables.get("success_rate", {})
    columns = {
        "V(q), all": variance.get("all"),
        f"without the top {results['outliers']}": variance.get("without_outliers"),
        "V(q), with spread": variance.get("informative"),
        "success rate": success.get("all"),
    }
    if present := {name: table["rows"] for name, table in columns.items() if table}:
        _print_table(present)
    if results["weights"]:
        _print_weights(results["weights"])
    print(*results["recommendation"]["words"], sep="\n", end="\n\n")


def _print_table(columns: dict[str, JsonObject]) -> None:
    from calibrant.report.formats import rho_text
    from calibrant.report.names import label

    sorted_by = columns.get("V(q), with spread") or next(iter(columns.values()))
    names = sorted(sorted_by, key=lambda name: -sorted_by[name]["rho"])
    width = max(len(label(name)) for name in names)
    print(f"\n{'rank correlation with':<{width}}" + "".join(f"{name:>22}" for name in columns))
    for name in names:
        cells = (rho_text(rows[name]) if name in rows else "-" for rows in columns.values())
        print(f"{label(name):<{width}}" + "".join(f"{cell:>22}" for cell in cells))
    print()


def _print_weights(weights: JsonObject) -> None:
    from calibrant.report.analysis_weights import WEIGHT_HEADER, weight_rows

    rows = [list(WEIGHT_HEADER), *weight_rows(weights)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *cells in rows:
        print(f"{first:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(cells, widths[1:], strict=True)), sep="  ")
    print()
