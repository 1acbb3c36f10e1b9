"""Write the report of a run, of an analysis or of a comparison again, from its saved files."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  calibrant report runs/places-gcpo_bot-seed0
  calibrant report runs/analyze-places-demo-seed0
  calibrant report runs/compare-places-demo --images figures
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the directory."""
    parser.add_argument("run", metavar="RUN", help="directory of a run, of an analysis or of a comparison")
    parser.add_argument("--images", metavar="FOLDER", help="also write each figure there, as an SVG file")


def run(options: argparse.Namespace) -> int:
    """Writes report.html, or comparison.html, and prints its path."""
    from calibrant.report import write_analysis_report, write_comparison, write_report

    path, images = Path(options.run), Path(options.images) if options.images else None
    if (path / "comparison.json").is_file():
        print(write_comparison(path, images))
    else:
        print((write_analysis_report if (path / "groups.jsonl").is_file() else write_report)(path, images))
    return 0
