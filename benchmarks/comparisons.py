"""What finished comparisons found, without the values per prompt, as one JSON object: what is kept of a sweep.

    calibrant compare --config configs/small/stability.yaml --out runs/stability
    python benchmarks/comparisons.py stability=runs/stability > benchmarks/results/comparisons.json

Each argument is NAME=DIRECTORY. Per cell and metric of the answers: the mean of each seed, mean and deviation, the gain
with its 95% interval and Holm's p-value, the correlation of equal seeds between the two cells (Pearson's, of the seeds'
means), and the seeds that collapsed.
"""

import argparse
import json
from collections.abc import Mapping
from statistics import StatisticsError, correlation

from calibrant.files import JsonObject
from calibrant.report.comparison_files import load_comparison, main_tables
from calibrant.statistics.comparison_table import ComparisonRow

DIGITS = 4


def tables_of(directory: str) -> JsonObject:
    """The tables of a comparison, rounded."""
    table = load_comparison(directory).table
    tables = {
        f"{part.task} {part.metric}": {
            "prompts": part.prompts,
            "cells": {row.cell: _row(row, {other.cell: other for other in part.rows}) for row in part.rows},
        }
        for part in main_tables(table)
    }
    about = {"baseline": table.baseline, "settings": table.settings, "pair_seeds": table.pair_seeds}
    return about | {"tables": tables}


def _row(row: ComparisonRow, rows: Mapping[str, ComparisonRow]) -> JsonObject:
    content: JsonObject = {"seeds": {str(seed): _rounded(value) for seed, value in row.by_seed.items()}}
    content |= {"mean": _rounded(row.mean), "deviation": _rounded(row.deviation), "before": _rounded(row.before)}
    content["collapsed"] = list(row.collapsed)
    if gain := row.gain:
        interval = [_rounded(gain.low), _rounded(gain.high)]
        content["gain"] = {"over": gain.against, "value": _rounded(gain.value), "interval": interval}
        content["gain"] |= {"p_holm": _rounded(gain.p_holm), "detectable": _rounded(gain.detectable)}
        content["gain"]["seed_correlation"] = _rounded(_correlation(row.by_seed, rows[gain.against].by_seed))
    return content


def _correlation(x: Mapping[int, float], y: Mapping[int, float]) -> float | None:
    """Pearson's correlation of equal seeds; None with fewer than three, or where the values of a cell are equal."""
    seeds = sorted(set(x) & set(y))
    try:
        return correlation([x[s] for s in seeds], [y[s] for s in seeds]) if len(seeds) > 2 else None
    except StatisticsError:
        return None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def main() -> None:
    """Prints the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", metavar="NAME=DIRECTORY", help="a name and a finished comparison")
    directories = dict(each.split("=", 1) for each in parser.parse_args().comparisons)
    print(json.dumps({name: tables_of(directory) for name, directory in directories.items()}))


if __name__ == "__main__":
    main()
