"""Draw the report of a run again, from its saved files."""

import argparse
from pathlib import Path

EXAMPLES = """example:
  calibrant report runs/places-gcpo_bot-seed0
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run", metavar="RUN", help="run directory")


def run(options: argparse.Namespace) -> int:
    """Writes report.html."""
    from calibrant.report import write_report

    print(write_report(Path(options.run)))
    return 0
