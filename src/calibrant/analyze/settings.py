"""The options of `calibrant analyze`."""

from dataclasses import dataclass

from calibrant import options
from calibrant.options import COUNT, DataOptions, ModelOptions, SamplingOptions, TextOptions, option

QUERIES = 200  # default number of groups to sample


@dataclass(frozen=True)
class AnalyzeSettings(DataOptions, ModelOptions, SamplingOptions, TextOptions):
    """Everything that decides what is measured."""

    model: str = options.model()
    seed: int = options.seed()
    rollouts: int = options.rollouts()
    from_rollouts: str | None = options.from_rollouts()
    split: str | None = option(None, "split of the data", shown="the training split", metavar="NAME")
    queries: int | None = option(
        None, "number of prompts, N; a larger one continues an analysis", shown="200, or all of the file", limit=COUNT
    )
    parameters: tuple[str, ...] | None = option(
        None, "name patterns of the parameters that V(q) is of", shown="all trainable", metavar="PATTERN"
    )
