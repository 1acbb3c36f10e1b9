"""The options of `calibrant compare`, beside those of training, of which it takes all but a few."""

from dataclasses import dataclass
from typing import Any

from calibrant.errors import CalibrantError
from calibrant.options import COUNT, NOT_NEGATIVE, POSITIVE, Settings, option
from calibrant.ray_cluster import ADDRESS

OF_RUNS = ("method", "seed", "evaluation")
"""Options of training that a comparison sets itself, for each run."""


@dataclass(frozen=True)
class CompareSettings(Settings):
    """Comparison."""

    methods: tuple[str, ...] | None = option(
        None,
        "cells of the comparison: methods, each with options of its own after commas, e.g. grpo gcpo_cd "
        "grpo_care,form=agreement gcpo_cd,alpha=0.3,learning_rate=1e-5",
        metavar="METHOD",
    )
    cells: dict[str, Any] | None = option(None, "cells by name, each with its options")  # of YAML files alone
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds of training, of every cell", shown="0 1 2")
    settings: str = option(
        "shared",
        "recommended: each method with the training settings of its paper; shared: all alike but for what makes a "
        "method what it is; options that are given hold for all",
        choices=("shared", "recommended"),
    )
    vary: dict[str, tuple[Any, ...]] | None = option(
        None,
        "option of training, or hyper-parameter of a method, and its values, each a cell of every method that has it; "
        "repeated: all combinations",
    )
    baseline: str | None = option(
        None,
        "cell that the others are compared with",
        shown="the first of the method grpo, else the first",
        metavar="CELL",
    )
    pair_seeds: bool = option(
        True,
        "whether runs of equal seeds, which see the same prompts in the same order, are compared as pairs; choose "
        "before the runs, and without where they go separate ways: long runs with few seeds, large learning rates",
    )
    evaluate_on: tuple[str, ...] | None = option(
        None,
        "tasks to evaluate on, with options after commas, e.g. aime24 reading,data=DATA",
        shown="the task of training",
        metavar="TASK",
    )
    beside: tuple[str, ...] | None = option(
        None, "published tables to show on the page, e.g. gcpo:table1 gcpo:table2 gcpo:table6", metavar="PAPER:TABLE"
    )
    jobs: int | None = option(
        None, "number of runs side by side", shown="1; with an embedded policy one per core", limit=COUNT
    )
    threads: int = option(
        1, "CPU threads per run, on which its numbers depend in the last digits; --jobs changes no number", limit=COUNT
    )
    ray: str | None = option(
        None,
        f"{ADDRESS}: each run is a task with --threads CPUs, resumed elsewhere when its node dies; --out has to be on "
        "storage that all nodes share",
        metavar="ADDRESS",
    )
    ray_gpus: float = option(0.0, "GPUs per run on the Ray cluster", limit=NOT_NEGATIVE)
    ray_memory: float | None = option(None, "memory per run on the Ray cluster, in GB", limit=POSITIVE)
    keep_checkpoints: bool = option(False, "whether to keep the checkpoints of finished runs")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ray_gpus", "ray_memory"):
            if getattr(self, name) and self.ray is None:
                raise CalibrantError(f"option '{name}' does nothing without --ray; give an address or auto")
        if self.ray is not None and self.jobs is not None:
            raise CalibrantError("a Ray cluster runs as many side by side as it has room for; leave out --jobs")
