"""What several analyses found, as a Markdown table and a figure: how closely each signal follows V(q).

    calibrant analyze --queries 500 --out runs/places-before
    calibrant analyze --queries 500 --model runs/places --out runs/places-after
    python benchmarks/alignment.py before=runs/places-before after=runs/places-after --image docs/images/alignment.png

Each argument is NAME=DIRECTORY. Rank correlations are over groups with reward spread, with 95% bootstrap intervals.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from calibrant.report.figures import Estimates, rows_of_estimates, save_figure
from calibrant.report.formats import rho_text
from calibrant.report.names import label

SIZE = (4.6, 4.6)
"""Inches of a panel."""


def rows_of(directory: str, target: str) -> dict[str, dict[str, float]]:
    """Signal -> rank correlation with a target and its interval, over groups with reward spread."""
    results = json.loads((Path(directory) / "analysis.json").read_text())
    tables = results["tables"][target]
    rows: dict[str, dict[str, float]] = tables.get("informative", tables["all"])["rows"]
    return rows


def markdown(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """A table with one column an analysis, sorted by the first."""
    first = next(iter(found.values()))
    lines = [f"| signal | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for name in sorted(first, key=lambda signal: -first[signal]["rho"]):
        cells = (rho_text(row) if (row := rows.get(name)) else "-" for rows in found.values())
        lines.append(f"| {label(name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def image(found: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """A panel an analysis: each signal's estimate with its interval."""
    first = next(iter(found.values()))
    names = sorted(first, key=lambda signal: -first[signal]["rho"])
    draws: list[Any] = []
    for title, rows in found.items():
        columns = ([rows[name][key] if name in rows else math.nan for name in names] for key in ("rho", "low", "high"))
        marks = [Estimates(title, *columns)]
        draws.append(rows_of_estimates([label(name) for name in names], marks, f"rank correlation with V(q): {title}"))
    path.write_bytes(save_figure(draws, (SIZE[0] * len(draws), SIZE[1]), path.suffix.lstrip(".")))


def main() -> None:
    """Prints the tables, writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("analyses", nargs="+", metavar="NAME=DIRECTORY", help="a column and its analysis")
    parser.add_argument("--image", type=Path, help="file for the figure: .png or .svg")
    options = parser.parse_args()
    directories = dict(each.split("=", 1) for each in options.analyses)
    for target in ("gradient_variance", "success_rate"):
        print(f"\n{target}\n\n{markdown({name: rows_of(path, target) for name, path in directories.items()})}")
    if options.image:
        image({name: rows_of(path, "gradient_variance") for name, path in directories.items()}, options.image)


if __name__ == "__main__":
    main()
