"""Evaluations of a comparison: every model on the same prompts, with the same sampling seed, by the same options."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from calibrant.compare.cells import Cell, label, split_text
from calibrant.compare.settings import CompareSettings
from calibrant.errors import CalibrantError
from calibrant.evaluate.command import evaluations, write
from calibrant.evaluate.settings import EvaluateSettings
from calibrant.files import JsonObject, json_object, read_yaml, sha256, versions, write_yaml
from calibrant.model_options import ModelOptions
from calibrant.options import coerced, plain_values, read
from calibrant.tasks import chosen_task
from calibrant.train.runs import Run
from calibrant.train.settings import resolve_settings

log = logging.getLogger(__name__)

OF_TASK = ("data", "columns", "prompt_template", "test_share", "reward_funcs", "reward_weights")
"""Options that belong to one task, and not to the others of `--evaluate-on`."""
OF_MODEL = tuple(f.name for f in fields(ModelOptions))
RESULTS, CONFIG = "evaluation.json", "config.yaml"


@dataclass(frozen=True)
class Target:
    """A task that the models are evaluated on."""

    name: str  # also a folder's
    options: Mapping[str, object]  # of `calibrant evaluate`, without the model and its options

    def settings(self, model: str, cell: Cell) -> EvaluateSettings:
        """The options of the evaluation of a model, read as the cell reads its own."""
        of_model = {name: getattr(cell.training, name) for name in OF_MODEL}
        if cell.training.merge:  # a merged model is not quantised
            of_model["load_in_4bit"] = False
        return read(EvaluateSettings, {**self.options, **of_model, "models": (model,)})


def targets(settings: CompareSettings, given: Mapping[str, object], cells: list[Cell]) -> list[Target]:
    """The tasks to evaluate on; raises CalibrantError where cells would be evaluated on different prompts."""
    base = resolve_settings({**given, "method": "grpo"}, shared=True)
    names = {f.name for f in fields(EvaluateSettings)} & {f.name for f in fields(base)} - {*OF_MODEL, "seed", "levels"}
    common = {name: getattr(base, name) for name in names} | {
        "prompts": base.eval_prompts,
        "samples": base.eval_samples,
    }
    if settings.evaluate_on is None:
        for option in ("task", "data_dir", *OF_TASK):
            if len({repr(getattr(cell.training, option)) for cell in cells}) > 1:
                raise CalibrantError(
                    f"the cells differ in '{option}', so that their evaluation prompts would differ; say with "
                    "--evaluate-on which task all of them are evaluated on"
                )
        task = {name: getattr(cells[0].training, name) for name in ("task", "data_dir", *OF_TASK)}
        return [_target(label(str(task["task"]), {}), common | task)]
    chosen = [_named(text, common, given) for text in settings.evaluate_on]
    if len({target.name for target in chosen}) < len(chosen):
        raise CalibrantError("a task of --evaluate-on is given twice; give each once")
    return chosen


def _named(text: str, common: Mapping[str, object], given: Mapping[str, object]) -> Target:
    """A task of `--evaluate-on`; one that is not trained on has options of its own alone."""
    task, own = split_text(text)
    base = dict(common)
    if task != common["task"]:
        base |= dict.fromkeys(OF_TASK) | {"max_completion_length": given.get("max_completion_length")}
    if refused := {"models", "from_rollouts", "out", "seed", *OF_MODEL} & own.keys():
        raise CalibrantError(
            f"'{text}' of --evaluate-on sets '{min(refused)}', which the comparison sets; leave it out"
        )
    return _target(label(task, own), base | coerced(EvaluateSettings, own, f" of '{text}'") | {"task": task})


def _target(name: str, options: Mapping[str, object]) -> Target:
    target = Target(name, options)
    chosen_task(read(EvaluateSettings, {**options, "models": ("",)}))  # raises for a task or data that are not there
    return target


def exists(folder: Path, settings: EvaluateSettings, run: Run | None) -> bool:
    """Whether a folder holds this evaluation of a model as it is now.

    Raises CalibrantError if it holds one with other options.
    """
    if not (folder / RESULTS).exists() or not (folder / CONFIG).exists():
        return False
    config = read_yaml(folder / CONFIG)
    before, now = config.get("settings") or {}, _comparable(settings)
    if different := [name for name, value in now.items() if before.get(name) != value]:
        name = different[0]
        raise CalibrantError(
            f"the evaluation in '{folder}' was made with {name} = {before.get(name)}, not {now[name]}; delete that "
            "folder to evaluate again, or give another --out"
        )
    if config.get("trained") != _trained(run):
        log.warning("the model of '%s' has been trained again: its evaluation is out of date", folder)
        return False
    return True


def evaluate_into(folder: Path, settings: EvaluateSettings, run: Run | None) -> None:
    """Evaluates a model into a folder, `evaluation.json` last."""
    (folder / RESULTS).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    evaluated = evaluations(settings)
    about = {"seconds": time.monotonic() - started, "trained": _trained(run), "versions": versions()}
    write_yaml(folder / CONFIG, {"command": "evaluate", "settings": _comparable(settings), **about})
    write(str(folder), evaluated)


def read_results(folder: Path) -> JsonObject:
    """The content of `evaluation.json`."""
    results = json_object((folder / RESULTS).read_bytes())
    if results is None:
        raise CalibrantError(f"'{folder / RESULTS}' is damaged; delete that folder to evaluate again")
    return results


def seconds_of(folder: Path) -> float | None:
    """What an evaluation took; None where there is none."""
    return read_yaml(folder / CONFIG).get("seconds") if (folder / RESULTS).exists() else None


def _comparable(settings: EvaluateSettings) -> JsonObject:
    """The options, without those that say where things are, in the types of YAML."""
    of_place = ("models", "from_rollouts", "out")
    return {name: value for name, value in plain_values(settings).items() if name not in of_place}


def _trained(run: Run | None) -> str | None:
    """What tells one training from another: a checksum of its metrics, which hold seconds."""
    return sha256(run.metrics) if run else None
