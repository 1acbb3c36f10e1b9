"""The options of `calibrant analyze`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from calibrant import options
from calibrant.demo import embedded_policy
from calibrant.methods.recipes import recipe_values
from calibrant.model_options import AdapterOptions, EngineOptions, ModelOptions
from calibrant.options import (
    COUNT,
    SHARE,
    DataOptions,
    RangeOptions,
    SamplingOptions,
    Settings,
    TextOptions,
    option,
    read,
)

QUERIES = 200  # default number of groups to sample


@dataclass(frozen=True)
class AnalyzeSettings(
    DataOptions, ModelOptions, AdapterOptions, EngineOptions, SamplingOptions, TextOptions, RangeOptions
):
    """Everything that decides what is measured."""

    recipe: str | None = options.recipe()
    model: str = options.model()
    seed: int = options.seed()
    rollouts: int = options.rollouts()
    from_rollouts: str | None = options.from_rollouts()
    split: str | None = option(None, "split of the data", shown="the training split", metavar="NAME")
    queries: int | None = option(
        None, "number of prompts, N; a larger one continues an analysis", shown="200, or all of the file", limit=COUNT
    )
    parameters: tuple[str, ...] | None = option(
        None,
        "name patterns of the parameters that V(q) is of",
        shown="all trainable; of more than 100 million, those of the last block",
        metavar="PATTERN",
    )


@dataclass(frozen=True)
class SelectionOptions(Settings):
    """Selection of prompts."""

    write_selection: str | None = option(
        None, "file for the prompts that teach, which `calibrant train --selection` reads", metavar="FILE"
    )
    success_between: tuple[float, float] = option(
        (0.0, 1.0), "lowest and highest share of right answers of a selected prompt", shown="0 1"
    )
    select_by: str | None = option(
        None, "signal by which the most uncertain prompts are left out", shown="none", metavar="SIGNAL"
    )
    select_share: float = option(0.8, "share of the prompts that is kept by that signal", limit=SHARE)


def resolve_settings(given: Mapping[str, object]) -> AnalyzeSettings:
    """Given options, then those of the recipe, then the general defaults."""
    recipe = None if given.get("recipe") is None else str(given["recipe"])
    settings = recipe_values(recipe, [f.name for f in fields(AnalyzeSettings)], given) | dict(given)
    policy = embedded_policy(str(settings.get("task", AnalyzeSettings.task)))
    return read(AnalyzeSettings, {"model": policy} | settings)
