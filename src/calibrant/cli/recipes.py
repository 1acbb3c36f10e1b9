"""What a recipe set, and what its paper leaves open."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from calibrant.methods.recipes import recipe_lines

if TYPE_CHECKING:
    from calibrant.analyze.settings import AnalyzeSettings
    from calibrant.train.settings import TrainSettings


def print_recipe(recipe: str, settings: "TrainSettings | AnalyzeSettings") -> None:
    """Prints each option of the recipe as it was resolved, with source and level of certainty."""
    print("\n".join(recipe_lines(recipe, asdict(settings))))
