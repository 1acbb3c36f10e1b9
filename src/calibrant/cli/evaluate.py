"""Evaluate a model on the unseen split of a task: answer metrics, and the calibration of its confidence.

MODEL is a run directory, a model folder, a hub name, 'demo' or 'demo-arithmetic'; two models are compared on the same
prompts. Greedy and sampled answers are evaluated by the task's metrics, sampled answers also by calibration (are more
likely answers correct more often?) and by selection (majority vote, best of n, pass@k). Intervals are 95% bootstrap
intervals over prompts. --out writes the results and the sampled answers; --from-rollouts evaluates the answers of a
rollout file.
"""

import argparse
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from calibrant.evaluate.settings import EvaluateSettings
from calibrant.options import add_arguments, read

if TYPE_CHECKING:
    from calibrant.evaluate.command import Evaluation

EXAMPLES = """examples:
  calibrant evaluate demo
  calibrant evaluate runs/places-gcpo_bot-seed0 --prompts 311 --out judged
  calibrant evaluate demo runs/places-gcpo_bot-seed0
  calibrant evaluate demo-arithmetic --task arithmetic
  calibrant evaluate --from-rollouts judged/rollouts.parquet --task places
  calibrant evaluate my_model --task math500 --data-dir MATH --max-completion-length 1024
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the models and the options."""
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help="run directory, model folder, hub name, 'demo' or 'demo-arithmetic'"
    )
    add_arguments(parser, EvaluateSettings)


def run(options: argparse.Namespace) -> int:
    """Evaluates, prints tables, and writes files where asked."""
    settings = read(EvaluateSettings, vars(options))
    from calibrant.files import locked

    with locked(settings.out) if settings.out else nullcontext():
        _evaluate(settings)
    return 0


def _evaluate(settings: EvaluateSettings) -> None:
    from calibrant.evaluate import command

    evaluated = command.evaluations(settings)
    print_table({name: evaluation.results for name, evaluation in evaluated.items()})
    for name, evaluation in evaluated.items():
        print_calibration(name, evaluation.results)
    if len(evaluated) == 2:
        print_differences(evaluated, settings)
    for folder in command.write(settings.out, evaluated) if settings.out else []:
        print(f"written: {folder}")


def print_table(evaluations: dict[str, dict[str, Any]]) -> None:
    """Prints evaluations, one line per decoding: mean and 95% interval of each metric."""
    first = next(iter(evaluations.values()))
    width = max(len(name) for name in evaluations)
    decodings = [name for name in ("greedy", "sampled") if name in first]
    at = f" at temperature {first['temperature']}" if "temperature" in first else ""
    print(
        f"\n{first['task']}, {first['split']} split: {first['prompts']} prompts, {' and '.join(decodings)}, "
        f"{first['samples']} samples{at}"
    )
    print(f"{'':<{width}}  {'':<8}" + "".join(f"{name:>22}" for name in first["sampled"]))
    for name, evaluation in evaluations.items():
        for decoding in decodings:
            cells = (_cell(x) for x in evaluation[decoding].values())
            print(f"{name:<{width}}  {decoding:<8}" + "".join(f"{cell:>22}" for cell in cells))
    print()


def print_calibration(name: str, results: dict[str, Any]) -> None:
    """Prints calibration, and the accuracy of one answer per prompt by selection rule and number of samples."""
    if "calibration" not in results:
        print(f"{name}: no calibration: {results.get('calibration_missing', 'it was not measured')}\n")
        return
    print(f"{name}: confidence is the likelihood per token")
    for figure, value in results["calibration"].items():
        print(f"  {figure:<30}{_cell(value):>24}")
    sizes = list(next(iter(results["selection"].values())))
    print("\n  accuracy of one answer of" + "".join(f"{n:>9}" for n in sizes))
    for rule, row in results["selection"].items():
        print(f"  {rule:<25}" + "".join(f"{row[n]['mean']:>9.3f}" for n in sizes))
    print()


def print_differences(evaluated: "Mapping[str, Evaluation]", settings: EvaluateSettings) -> None:
    """Prints the second model's metrics minus the first one's on the same prompts, with paired intervals."""
    from calibrant.evaluate.evaluation import differences
    from calibrant.tasks import resolve

    (first, before), (second, after) = evaluated.items()
    print(f"{second} minus {first}, sampled, paired by prompt")
    rows = differences(resolve(settings.task), before.answers, after.answers, seed=settings.seed)
    for name, value in rows.items():
        print(f"  {name:<30}{_cell(value, sign=True):>26}")
    print()


def _cell(x: dict[str, float], *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{x['mean']:{form}} [{x['low']:{form}}, {x['high']:{form}}]"
