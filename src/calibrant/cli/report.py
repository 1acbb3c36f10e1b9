"""Write the report of a run, of an analysis or of a comparison again, from its saved files."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  calibrant report runs/places-gcpo_bot-seed0
  calibrant report runs/analyze-places-demo-seed0
  calibrant report runs/compare-places-demo
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the directory."""
    parser.add_argument("run", metavar="RUN", help="directory of a run, of an analysis or of a comparison")


def run(options: argparse.Namespace) -> int:
    """Writes report.html, or comparison.html, and prints its path."""
    from calibrant.report import write_analysis_report, write_comparison, write_report

    path = Path(options.run)
    if (path / "comparison.json").is_file():
        print(write_comparison(path))
    else:
        print((write_analysis_report if (path / "groups.jsonl").is_file() else write_report)(path))
    return 0
