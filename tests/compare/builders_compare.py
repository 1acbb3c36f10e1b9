"""A comparison of seconds with the embedded policy."""

import json
from pathlib import Path

SMALL = [
    "--steps", "2", "--prompts-per-step", "2", "--rollouts", "4", "--max-completion-length", "12", "--train-rows", "20",
    "--eval-prompts", "6", "--eval-samples", "2", "--save-every", "1",
]  # fmt: skip


def read(folder: Path) -> dict:
    return json.loads((folder / "comparison.json").read_text())


def without_times(folder: Path) -> dict:
    """The measurements of a comparison, but for seconds."""
    measured = read(folder)["measurements"]
    for cell in measured["cells"]:
        cell["cost"] = {name: value for name, value in cell["cost"].items() if not name.startswith("seconds")}
    return measured
