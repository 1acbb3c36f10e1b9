"""Compare methods: each is trained with several seeds, evaluated on the same prompts, and set beside a baseline.

A cell of the comparison is a method with options of its own. Every cell and seed is an ordinary run directory in
OUT/runs; what is there is not run again, what was interrupted is resumed, a run that fails is named and leaves its cell
with fewer seeds. The options of `calibrant train` hold for all cells. A YAML file (--config) holds options of both
kinds, and may list cells by name under `cells`; what stands under `about` is shown by --dry-run alone.
"""

import argparse
import logging
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from calibrant.compare.settings import OF_RUNS, CompareSettings
from calibrant.errors import CalibrantError
from calibrant.files import InUse, locked, read_yaml
from calibrant.options import add_arguments, coerced, declared, read
from calibrant.train.settings import TrainSettings, policy_defaults

if TYPE_CHECKING:
    from calibrant.compare.command import Comparison
    from calibrant.compare.plan import Planned

log = logging.getLogger(__name__)

EXAMPLES = """examples:
  calibrant compare --methods grpo gcpo_bot --seeds 0 1 --steps 20
  calibrant compare --methods grpo gcpo_cd "grpo_care,form=agreement" --settings recommended --out runs/table
  calibrant compare --methods grpo gcpo_cd gcpo_bot --vary alpha 0 0.3 0.6 0.9 --jobs 4
  calibrant compare --methods grpo rd_only --vary learning-rate 1e-5 1e-4 1e-3 --dry-run
  calibrant compare --methods grpo gcpo_bot --task olympiadbench --evaluate-on aime24 math500
  calibrant compare --config configs/gcpo_table1.yaml --dry-run
  calibrant compare --methods grpo gcpo_bot --beside gcpo:table1
"""


OF_COMMAND = ("out", "config", "dry_run", "finished")  # options of the command line alone


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the comparison and of training."""
    parser.add_argument("--out", metavar="DIR", help="directory (default: runs/compare-TASK-MODEL)")
    parser.add_argument("--config", metavar="FILE", help="YAML file of options, with underscores in their names")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run", action="store_true", help="show the cells, what is there, and an estimate of time; run nothing"
    )
    instead.add_argument(
        "--finished",
        action="store_true",
        help="compare the runs that are finished so far, also while the rest is running; run nothing",
    )
    add_arguments(parser, CompareSettings, without=("cells",))
    add_arguments(parser, TrainSettings, policy_defaults(), without=OF_RUNS)


def run(options: argparse.Namespace) -> int:
    """Trains, evaluates and compares, and prints the table."""
    own, training = split_options({k: v for k, v in vars(options).items() if k not in OF_COMMAND}, "")
    file = Config({}, {}, {})
    if options.config:
        file = read_config(options.config)
        own, training = file.comparison | own, file.training | training
    settings = read(CompareSettings, own)
    from calibrant.compare import command

    compared = command.comparison(settings, training, Path(options.out) if options.out else None)
    if options.dry_run:
        return _dry_run(compared, file.about)
    do = command.measure_finished if options.finished else command.finish
    try:
        with locked(compared.folder.path):
            planned = compared.plan()
            _print_plan(compared, planned)
            text, paths = command.write(compared, do(compared, planned))
    except InUse:
        if not options.finished:
            raise
        return _print_finished(compared)
    print(f"\n{text}", *(f"written: {path}" for path in paths), sep="\n")
    return 0


def _print_finished(compared: "Comparison") -> int:
    """Prints the table of what is finished beside a process that works on the rest, and leaves its files alone."""
    from calibrant.compare import command

    planned = compared.plan()
    _print_plan(compared, planned)
    print(f"\n{command.finished_text(compared, planned)}")
    print("nothing is written: the comparison is running")
    return 0


class Config(NamedTuple):
    """A YAML file of options."""

    comparison: dict[str, object]
    training: dict[str, object]
    about: dict[str, object]  # for people: what it reproduces, checksums, what it is expected to need


def read_config(path: str | Path) -> Config:
    """Reads a YAML file of options; `about` in it is for people, any mapping."""
    content = read_yaml(path)
    about = content.pop("about", {})
    if not isinstance(about, dict):
        raise CalibrantError(f"'about' in '{path}' is no mapping; write 'name: text' lines below it")
    return Config(*split_options(content, f" in '{path}'"), about)


def split_options(given: dict[str, object], origin: str) -> tuple[dict[str, object], dict[str, object]]:
    """Options of the comparison, and those of training, in their types."""
    given = dict(given)
    of_comparison = {name: given.pop(name) for name in declared(CompareSettings) if name in given}
    if set_here := [name for name in OF_RUNS if name in given]:
        raise CalibrantError(f"option '{set_here[0]}'{origin} is set for each run; give methods and seeds")
    return coerced(CompareSettings, of_comparison, origin), coerced(TrainSettings, given, origin)


def _about_lines(name: str, value: object) -> list[str]:
    """`name: text`, with each item of a list or a mapping on lines of its own."""
    items = [f"{key}: {item}" for key, item in value.items()] if isinstance(value, dict) else value
    texts = [f"  - {item}" for item in items] if isinstance(items, list) else []
    lines = [f"{name}:", *texts] if texts else [f"{name}: {value}"]
    return [textwrap.fill(line, 115, subsequent_indent="    ", break_on_hyphens=False) for line in lines]


def _dry_run(compared: "Comparison", about: dict[str, object]) -> int:
    from calibrant.compare.preview import estimate

    for name, value in about.items():
        print(*_about_lines(name, value), sep="\n")
    planned = compared.plan()
    _print_plan(compared, planned)
    for one in planned:
        print(f"  {one.name:<50} {one.state}")
    print(*estimate(compared, planned), sep="\n")
    return 0


def _print_plan(compared: "Comparison", planned: "list[Planned]") -> None:
    settings, left = compared.settings, sum(not one.complete for one in planned)
    seeds, tasks = ", ".join(map(str, settings.seeds)), ", ".join(target.name for target in compared.targets)
    print(f"cells: {len(compared.cells)}, each with the seeds {seeds}; {settings.settings} settings")
    print(f"compared with: {compared.baseline}; evaluated on: {tasks}")
    print(f"to do: {left} of {len(planned)} runs and evaluations before training, in {compared.folder.path}")
    if len(settings.seeds) == 1:
        log.warning("one seed: the table has no deviations over seeds, and its intervals are over prompts alone")
