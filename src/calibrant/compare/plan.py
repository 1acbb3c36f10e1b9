"""What a comparison has to do: its runs and evaluations that are there, interrupted or missing."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from calibrant.compare.cells import Cell, label
from calibrant.compare.evaluations import Target, exists
from calibrant.compare.folder import Folder
from calibrant.errors import CalibrantError
from calibrant.evaluate.settings import EvaluateSettings
from calibrant.files import read_json_lines
from calibrant.train.runs import Run
from calibrant.train.settings import TrainSettings
from calibrant.train.training import missing

WITHOUT_EFFECT = ("evaluation", "eval_prompts", "eval_samples", "save_every", "report_to")
"""Options of training that do not change the trained model."""


@dataclass(frozen=True)
class Planned:
    """A run, or the evaluation of a model before training."""

    name: str  # e.g. `gcpo_bot/seed-0`
    cell: Cell  # of an evaluation before training, the first cell with that model
    run: Run | None  # None: before training
    training: TrainSettings
    done: int  # steps that are trained
    trained: bool
    evaluations: dict[Path, EvaluateSettings]  # that are missing

    @property
    def complete(self) -> bool:
        """Whether nothing is to be done."""
        return self.trained and not self.evaluations

    @property
    def state(self) -> str:
        """In words, for the plan."""
        if self.complete:
            return "there"
        if self.trained:
            return f"{'trained, ' if self.run else ''}{len(self.evaluations)} of its evaluations missing"
        return f"at step {self.done} of {self.training.steps}" if self.done else "missing"


def plan(folder: Folder, cells: list[Cell], seeds: tuple[int, ...], targets: list[Target]) -> list[Planned]:
    """Everything that the comparison reads, in the order in which it is made: seed by seed.

    Raises CalibrantError for a run or an evaluation that was made with other options.
    """
    return [
        *_before(folder, cells, targets),
        *(_of_run(folder, cell, seed, targets) for seed in seeds for cell in cells),
    ]


def models(cells: list[Cell]) -> dict[str, Cell]:
    """Model -> the first cell that trains it; raises CalibrantError where two have the same name as a folder."""
    first = {cell.training.model: cell for cell in reversed(cells)}
    names = {model_label(model): model for model in first}
    for model in first:
        if (other := names[model_label(model)]) != model:
            raise CalibrantError(f"the models '{other}' and '{model}' have the same name as a folder; rename one")
    return first


def model_label(model: str) -> str:
    """A model's name as that of a folder."""
    return label(model.strip("/."), {}) or "model"


def _before(folder: Folder, cells: list[Cell], targets: list[Target]) -> Iterator[Planned]:
    for model, cell in sorted(models(cells).items(), key=lambda pair: cells.index(pair[1])):
        wanted = {folder.before(t.name, model_label(model)): t.settings(model, cell) for t in targets}
        absent = {path: settings for path, settings in wanted.items() if not exists(path, settings, None)}
        yield Planned(f"before/{model_label(model)}", cell, None, cell.training, 0, True, absent)


def _of_run(folder: Folder, cell: Cell, seed: int, targets: list[Target]) -> Planned:
    run, training = folder.run(cell.name, seed), cell.with_seed(seed)
    done, trained = 0, False
    if run.config.exists():
        found = run.settings()
        _check_equal(run, found, training)
        done, trained = steps_done(run), not missing(run, found)
    wanted = {folder.evaluation(t.name, cell.name, seed): t.settings(str(run.model), cell) for t in targets}
    absent = {path: settings for path, settings in wanted.items() if not (trained and exists(path, settings, run))}
    return Planned(f"{cell.name}/seed-{seed}", cell, run, training, done, trained, absent)


def _check_equal(run: Run, found: TrainSettings, wanted: TrainSettings) -> None:
    for name in (f.name for f in fields(TrainSettings) if f.name not in WITHOUT_EFFECT):
        if (kept := getattr(found, name)) != (asked := getattr(wanted, name)):
            raise CalibrantError(
                f"the run '{run.path}' was trained with {name} = {kept}, not {asked}; ask for the same, give another "
                "--out, or delete the run"
            )


def steps_done(run: Run) -> int:
    """The number of optimisation steps in the metrics of a run."""
    return sum(1 for _ in read_json_lines(run.metrics))
