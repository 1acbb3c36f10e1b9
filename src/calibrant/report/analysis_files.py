"""The directory of an analysis: its files, and the groups measured so far."""

import itertools
from collections.abc import Generator
from pathlib import Path

from calibrant.errors import CalibrantError
from calibrant.files import JsonObject, append_json_lines, read_json_lines, read_yaml


class Analysis:
    """The directory of an analysis."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"  # options, versions, and fingerprints of model and rollouts
        self.groups = path / "groups.jsonl"  # one object per group, with its signals and its gradient variance
        self.rollouts = path / "rollouts.jsonl"  # as `calibrant score` and `--from-rollouts` read them
        self.results = path / "analysis.json"  # tables and recommendation
        self.report = path / "report.html"

    def options(self) -> JsonObject:
        """The content of `config.yaml`."""
        config = read_yaml(self.config) if self.config.is_file() else {}
        if config.get("command") != "analyze" or not isinstance(config.get("settings"), dict):
            raise CalibrantError(f"'{self.path}' holds other files than an analysis; give another --out")
        return config

    def lines(self, count: int | None = None) -> Generator[JsonObject, None, None]:
        """The measured groups in order, at most `count`."""
        lines = itertools.islice(read_json_lines(self.groups), count)
        for index in itertools.count():
            try:
                line = next(lines, None)
            except ValueError:
                line = {}
            if line is None:
                return
            if line.get("index") != index or "signals" not in line:
                raise CalibrantError(
                    f"'{self.groups}' is damaged at line {index + 1}; start anew with another --out, or delete from "
                    "that line on"
                )
            yield line

    def append(self, line: JsonObject, rows: list[JsonObject] | None) -> None:
        """Appends a group: its rollouts first, then its line, which marks both as complete."""
        if rows is not None:
            append_json_lines(self.rollouts, rows)
        append_json_lines(self.groups, [line])
