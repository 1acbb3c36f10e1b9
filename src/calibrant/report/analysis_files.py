"""The directory of an analysis: its files, and the groups that are measured."""

import itertools
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrant.errors import CalibrantError
from calibrant.files import append_json_line, append_json_lines, read_json_lines, read_yaml


@dataclass(frozen=True)
class Analysis:
    """Paths of the directory of an analysis."""

    path: Path

    @property
    def config(self) -> Path:
        """Options, versions, and what the model and the rollouts were."""
        return self.path / "config.yaml"

    @property
    def groups(self) -> Path:
        """One JSON object a group: its signals and its gradient variance."""
        return self.path / "groups.jsonl"

    @property
    def rollouts(self) -> Path:
        """The sampled rollouts, a file that `calibrant score` and `--from-rollouts` read."""
        return self.path / "rollouts.jsonl"

    @property
    def results(self) -> Path:
        """Tables and recommendation."""
        return self.path / "analysis.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    def options(self) -> dict[str, Any]:
        """What `config.yaml` holds.

        Raises:
            CalibrantError: this is no directory of an analysis.
        """
        config = read_yaml(self.config) if self.config.is_file() else {}
        if config.get("command") != "analyze" or not isinstance(config.get("settings"), dict):
            raise CalibrantError(f"'{self.path}' holds other files than an analysis; give another --out")
        return config

    def lines(self, count: int | None = None) -> Generator[dict[str, Any], None, None]:
        """The groups that are measured, at most `count`, in order.

        Raises:
            CalibrantError: a line is damaged.
        """
        found = read_json_lines(self.groups)
        for index in itertools.count() if count is None else range(count):
            try:
                line = next(found)
            except StopIteration:
                return
            except ValueError:
                line = None
            if not isinstance(line, dict) or line.get("index") != index or "signals" not in line:
                raise CalibrantError(
                    f"'{self.groups}' is damaged at line {index + 1}; start anew with another --out, or delete from "
                    "that line on"
                )
            yield line

    def append(self, line: dict[str, Any], rows: list[dict[str, Any]] | None) -> None:
        """Adds a group: first its rollouts, then its line, which says that both are there."""
        if rows is not None:
            append_json_lines(self.rollouts, rows)
        append_json_line(self.groups, line)
