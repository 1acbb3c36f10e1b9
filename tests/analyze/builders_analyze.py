"""Builders and constants of the tests of analyze."""

import json
from pathlib import Path

from calibrant.report.analysis_files import Analysis

SMALL = ["analyze", "--queries", "6", "--rollouts", "4"]


def lines_of(path: Path) -> list[dict]:
    return list(Analysis(path).lines())


def rollouts_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "rollouts.jsonl").read_text().splitlines()]
