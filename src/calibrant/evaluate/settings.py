"""The options of `calibrant evaluate`."""

from dataclasses import dataclass

from calibrant import options
from calibrant.errors import CalibrantError
from calibrant.model_options import EngineOptions, ModelOptions
from calibrant.options import COUNT, NOT_NEGATIVE, DataOptions, SamplingOptions, option


@dataclass(frozen=True)
class EvaluateSettings(DataOptions, ModelOptions, EngineOptions, SamplingOptions):
    """The settings of an evaluation."""

    models: tuple[str, ...] = ()
    from_rollouts: str | None = options.from_rollouts()
    prompts: int = option(200, "number of prompts, N; 0 for the whole split", limit=NOT_NEGATIVE)
    samples: int = option(16, "number of answers sampled per prompt", limit=COUNT)
    seed: int = options.seed()
    out: str | None = option(
        None, "folder for evaluation.json and rollouts.parquet; one subfolder per model of two", metavar="DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.models) == bool(self.from_rollouts) or len(self.models) > 2:
            raise CalibrantError("give one MODEL, or two to compare them, or --from-rollouts FILE")
        if len(set(self.models)) < len(self.models):
            raise CalibrantError(f"'{self.models[0]}' is given twice; give two models to compare them")
