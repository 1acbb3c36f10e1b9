"""The options of `calibrant analyze`."""

import math
from dataclasses import dataclass

from calibrant.checks import check_seed
from calibrant.errors import CalibrantError
from calibrant.text import MINILM

QUERIES = 200
"""Groups that are sampled where nothing else is asked for."""


@dataclass(frozen=True)
class AnalyzeSettings:
    """Everything that decides what is measured; as of `calibrant analyze --help`."""

    task: str = "places"
    model: str = "demo"
    data_dir: str | None = None
    split: str | None = None
    queries: int | None = None
    rollouts: int = 16
    temperature: float = 0.9
    max_prompt_length: int = 2048
    max_completion_length: int | None = None
    seed: int = 0
    parameters: tuple[str, ...] | None = None
    embedding_model: str = MINILM
    entailment_model: str | None = None
    entailment_dtype: str = "float32"
    cluster_rule: str = "greedy"
    entailment_threshold: float = 0.35
    from_rollouts: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in ("queries", "max_prompt_length", "max_completion_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise CalibrantError(f"option '{name}' is {value}; it must be at least 1")
        if self.rollouts < 2:
            raise CalibrantError(f"option 'rollouts' is {self.rollouts}; a group is compared, so give at least 2")
        check_seed(self.seed)
        if not 0 < self.temperature < math.inf:
            raise CalibrantError(f"option 'temperature' is {self.temperature}; it must be a positive number")
        if not 0 <= self.entailment_threshold <= 1:
            raise CalibrantError(
                f"option 'entailment_threshold' is {self.entailment_threshold}; it must lie between 0 and 1"
            )
