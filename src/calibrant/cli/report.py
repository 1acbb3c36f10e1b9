"""Write the report of a run or of an analysis again, from its saved files."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  calibrant report runs/places-gcpo_bot-seed0
  calibrant report runs/analyze-places-demo-seed0
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the directory."""
    parser.add_argument("run", metavar="RUN", help="directory of a run or of an analysis")


def run(options: argparse.Namespace) -> int:
    """Writes report.html and prints its path."""
    from calibrant.report import write_analysis_report, write_report

    path = Path(options.run)
    write = write_analysis_report if (path / "groups.jsonl").is_file() else write_report
    print(write(path))
    return 0
