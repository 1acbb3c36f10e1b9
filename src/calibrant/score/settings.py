"""The options of `calibrant score`."""

from dataclasses import dataclass

from calibrant import options
from calibrant.options import COUNT, TextOptions, WeightOptions, option
from calibrant.ray_cluster import ADDRESS


@dataclass(frozen=True)
class ScoreSettings(WeightOptions, TextOptions):
    """The settings of scoring rollouts."""

    file: str = ""
    format: str = option(
        "auto",
        "format of the rollouts: own files, or those of another tool; auto: by the names of their columns",
        choices=("auto", "calibrant", "trl", "verl", "openrlhf", "lm-eval"),
    )
    columns: dict[str, str] | None = options.columns()
    filter: str | None = option(None, "filter of lm-evaluation-harness whose rows are read", shown="the file's first")
    task: str | None = options.task_of_answers()
    method: str | None = options.method(None, shown="every method whose inputs the file has")
    embeddings: bool = option(
        True, "whether to load the embedding model; if not, methods that read embeddings are not applied"
    )
    embedding_cache: str | None = option(
        None,
        "SQLite file that keeps the embedding of each text for later runs",
        shown="one for this run alone",
        metavar="FILE",
    )
    out: str | None = option(
        None,
        "file for the scored rollouts, .parquet or .jsonl, or folder for many files and a manifest; the same command, "
        "given again after it was stopped, continues",
        metavar="PATH",
    )
    shard_rows: int = option(
        16_384,
        "rollouts per shard; methods that compare groups with each other, or remember earlier ones, do so shard by "
        "shard",
        limit=COUNT,
    )
    jobs: int = option(1, "number of processes", limit=COUNT)
    ray: str | None = option(
        None,
        f"{ADDRESS}: its nodes score",
        metavar="ADDRESS",
    )
