"""Train a model with GRPO-style updates that are scaled by how informative each group of answers is.

Without options, the embedded demo policy is trained on the embedded task, offline. The run directory holds the resolved
options, metrics per step, every rollout with its scores and weights, evaluations before and after training, the model
and a report. Options of the command line take precedence over those of --config, and both over the defaults.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from calibrant.cli.recipes import print_recipe
from calibrant.errors import CalibrantError, Stopped
from calibrant.files import read_yaml
from calibrant.options import add_arguments, coerced
from calibrant.train.settings import TrainSettings, policy_defaults, resolve_settings

if TYPE_CHECKING:
    from calibrant.train.runs import Run

EXAMPLES = """examples:
  calibrant train
  calibrant train --method gcpo_cd --alpha 0.3 --steps 300 --seed 1 --out runs/mine
  calibrant train --model Qwen/Qwen2.5-1.5B-Instruct --config my.yaml --bf16
  calibrant train --recipe gcpo --task qasper --data-dir my_data
  calibrant train --task reading --data pupils.csv --columns question=Frage,answers=Antwort,context=Text --dry-run
  calibrant train --resume runs/mine
  accelerate launch -m calibrant train --model my_folder
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a run and of its directory."""
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/TASK-METHOD-seedN)")
    parser.add_argument("--config", metavar="FILE", help="YAML file of options, with underscores in their names")
    parser.add_argument("--resume", metavar="RUN", help="run directory of the run to resume")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show three prompts with their rewards, the options and an estimate of time and memory, and train nothing",
    )
    add_arguments(parser, TrainSettings, policy_defaults())


def run(options: argparse.Namespace) -> int:
    """Trains or resumes, and prints the evaluations."""
    given = coerced(
        TrainSettings, {k: v for k, v in vars(options).items() if k not in ("out", "config", "resume", "dry_run")}
    )
    if options.resume:
        if options.out or options.config or options.dry_run:
            raise CalibrantError("--resume takes the run's own options; leave out --out, --config and --dry-run")
        return _resume(options.resume, given)
    file = coerced(TrainSettings, read_yaml(options.config), f" in '{options.config}'") if options.config else {}
    settings = resolve_settings(file | given)
    from calibrant.train import runs, training

    if settings.recipe:
        from calibrant.train.processes import processes

        if processes().is_main_process:
            print_recipe(settings.recipe, settings)
    if options.dry_run:
        return _preview(settings)
    path = Path(options.out) if options.out else runs.default_path(settings)
    return _finish(lambda: training.start(settings, path), path)


def _preview(settings: TrainSettings) -> int:
    from calibrant.train.preview import preview

    for line in preview(settings):
        print(line)
    return 0


def _resume(directory: str, given: dict[str, object]) -> int:
    from calibrant.train import runs, training

    run = runs.Run(Path(directory))
    settings = run.settings()
    for name, value in given.items():
        if value != (kept := getattr(settings, name)):
            raise CalibrantError(
                f"the run '{directory}' was started with {name} = {kept}, not {value}; resume it without "
                f"--{name.replace('_', '-')}, or start a new run with --out"
            )
    return _finish(lambda: training.resume(run, settings), run.path)


def _finish(train: "Callable[[], Run]", path: Path) -> int:
    from calibrant.train.processes import processes, shutdown_processes

    try:
        finished = train()
    except KeyboardInterrupt:
        again = f"; resume with: calibrant train --resume {path}" if (path / "config.yaml").exists() else ""
        raise Stopped(f"stopped{again}") from None
    except Stopped:
        shutdown_processes()
        if processes().is_main_process:
            raise
        return 130
    shutdown_processes()
    if processes().is_main_process:
        _print_result(finished)
    return 0


def _print_result(finished: "Run") -> None:
    from calibrant.cli.evaluate import print_table
    from calibrant.files import read_json_lines

    if evaluations := finished.evaluations():
        print_table(evaluations)
    for name, what in (("batch/unscorable", "unscorable"), ("batch/reward_out_of_range", "outside the reward range")):
        if count := int(sum(row.get(name, 0) for row in read_json_lines(finished.metrics))):
            print(f"warning: {count} rewards were {what}; metrics.jsonl has the count per step", file=sys.stderr)
    print(f"run directory: {finished.path}\nreport:        {finished.report}")
