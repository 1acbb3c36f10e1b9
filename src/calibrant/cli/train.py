"""Train a model whose updates are as strong as its groups of answers are informative.

Without options it trains the embedded demo policy on the embedded task, offline. The run directory holds the
resolved options, metrics, every rollout with its scores and weights, evaluations before and after, the model and a
report. A name given here wins over --config, which wins over the defaults.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from calibrant.errors import CalibrantError
from calibrant.files import read_yaml
from calibrant.train.settings import OF_ONE_POLICY, TrainSettings, kind_of, resolve_settings

if TYPE_CHECKING:
    from calibrant.train.runs import Run

EXAMPLES = """examples:
  calibrant train
  calibrant train --method gcpo_cd --alpha 0.3 --steps 300 --seed 1 --out runs/mine
  calibrant train --model Qwen/Qwen2.5-1.5B-Instruct --config my.yaml --bf16
  calibrant train --resume runs/mine
  accelerate launch -m calibrant train --model my_folder
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares an option for every setting, and where a run lies."""
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/TASK-METHOD-seedN)")
    parser.add_argument("--config", metavar="FILE", help="YAML file of options, named as here with underscores")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this directory")
    for f in fields(TrainSettings):
        parser.add_argument(f"--{f.name.replace('_', '-')}", default=argparse.SUPPRESS, **_argument(f))


def run(options: argparse.Namespace) -> int:
    """Trains or resumes, prints what came of it."""
    sys.path.insert(0, str(Path.cwd()))  # a method of the user's own is found as `python -m` finds it
    given = {k: v for k, v in vars(options).items() if k not in ("out", "config", "resume")}
    if "method_options" in given:
        given["method_options"] = dict(given["method_options"])
    if options.resume:
        return _finish(options.resume, given, options)
    file = read_yaml(options.config) if options.config else {}
    settings = resolve_settings({**file, **given})
    from calibrant.train import runs, training

    path = Path(options.out) if options.out else runs.default_path(settings)
    return _guarded(lambda: training.start(settings, path), path)


def _finish(directory: str, given: dict[str, Any], options: argparse.Namespace) -> int:
    from calibrant.train import training
    from calibrant.train.runs import Run

    if options.out or options.config:
        raise CalibrantError("--resume takes the run's own options; leave out --out and --config")
    found = Run(Path(directory))
    settings = found.settings()
    for name, value in given.items():
        value = tuple(value) if isinstance(value, list) else value
        if value != (kept := getattr(settings, name)):
            raise CalibrantError(
                f"the run '{directory}' was started with {name} = {kept}, not {value}; resume it without "
                f"--{name.replace('_', '-')}, or start a new run with --out"
            )
    return _guarded(lambda: training.resume(found, settings), found.path)


def _guarded(train: Any, path: Path) -> int:
    from calibrant.train.training import Stopped, part, processes

    try:
        finished = train()
        part()
    except Stopped as stopped:
        part()
        print(f"calibrant: {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print(f"calibrant: stopped; go on with: calibrant train --resume {path}", file=sys.stderr)
        return 130
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
            print(f"warning: {count} rewards were {what}; metrics.jsonl says in which steps", file=sys.stderr)
    print(f"run directory: {finished.path}\nreport:        {finished.path / 'report.html'}")


def _argument(f: Any) -> dict[str, Any]:
    """argparse keywords for a field."""
    kind = kind_of(f.name).split(" |")[0]
    help = f"{f.metadata['help']} (default: {_shown(f)})".replace("%", "%%")
    if kind == "bool":
        return {"action": argparse.BooleanOptionalAction, "help": help}
    if kind.startswith("tuple"):
        return {"nargs": 2, "type": float, "metavar": ("LOW", "HIGH"), "help": help}
    if kind.startswith("dict"):
        return {"action": "append", "type": assignment, "metavar": "NAME=VALUE", "help": help}
    return {"type": {"int": int, "float": float}.get(kind, str), "metavar": kind.upper(), "help": help}


def _shown(f: Any) -> str:
    shown = "none" if f.default is None else str(f.default)
    if f.metadata["demo"] is not None and f.metadata["demo"] != f.default:
        shown += f"; {f.metadata['demo']} with the demo policy"
    own = (f"; {values[f.name]} with {policy}" for policy, values in OF_ONE_POLICY.items() if f.name in values)
    return shown + "".join(own)


def assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE of the command line, the value read as YAML."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"the value of '{text}' is not YAML; give a number or a word") from None
