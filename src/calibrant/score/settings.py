"""The options of `calibrant score`."""

from dataclasses import dataclass

from calibrant import options
from calibrant.options import TextOptions, WeightOptions, option


@dataclass(frozen=True)
class ScoreSettings(WeightOptions, TextOptions):
    """The settings of scoring a file."""

    file: str = ""
    task: str | None = option(
        None, "task that extracts and clusters answers: name in `calibrant tasks`", metavar="NAME"
    )
    method: str | None = options.method(None, shown="every method whose inputs the file has")
    out: str | None = option(None, "file for the scored rollouts, .parquet or .jsonl", metavar="FILE")
