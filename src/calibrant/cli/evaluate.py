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

from calibrant.evaluate.settings import EvaluateSettings
from calibrant.files import JsonObject, locked
from calibrant.options import add_arguments, read

EXAMPLES = """examples:
  calibrant evaluate demo
  calibrant evaluate runs/places-gcpo_bot-seed0 --prompts 311 --out judged
  calibrant evaluate demo runs/places-gcpo_bot-seed0
  calibrant evaluate demo-arithmetic --task arithmetic
  calibrant evaluate --from-rollouts judged/rollouts.parquet --task places
  calibrant evaluate my_model --task math500 --data-dir MATH --max-completion-length 1024
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the models and the options."""
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help="run directory, model folder, hub name, 'demo' or 'demo-arithmetic'"
    )
    add_arguments(parser, EvaluateSettings)


def run(options: argparse.Namespace) -> int:
    """Evaluates, and prints and writes the results."""
    settings = read(EvaluateSettings, vars(options))
    from calibrant.evaluate import command

    with locked(settings.out) if settings.out else nullcontext():
        evaluated = command.evaluations(settings)
        print_table({name: evaluation.results for name, evaluation in evaluated.items()})
        for name, evaluation in evaluated.items():
            print_calibration(name, evaluation.results)
        if len(evaluated) == 2:
            first, second = evaluated
            print(f"{second} minus {first}, sampled, paired by prompt")
            _print_figures(command.change(settings, evaluated), "+.3f", 26)
            print()
        for folder in command.write(settings.out, evaluated) if settings.out else []:
            print(f"written: {folder}")
    return 0


def print_table(evaluations: Mapping[str, JsonObject]) -> None:
    """Prints evaluations, one line per decoding: mean and 95% interval of each metric."""
    first = next(iter(evaluations.values()))
    width = max(len(name) for name in evaluations)
    decodings = [name for name in ("greedy", "sampled") if name in first]
    at = f" at temperature {first['temperature']}" if "temperature" in first else ""
    print(
        f"\n{first['task']}, {first['split']} split: {first['prompts']} prompts, {' and '.join(decodings)}, "
        f"{first['samples']} samples{at}"
    )
    widths = [
        max(22, *(len(_cell(e[d][name])) + 2 for e in evaluations.values() for d in decodings), len(name) + 2)
        for name in first["sampled"]
    ]
    print(f"{'':<{width}}  {'':<8}" + "".join(f"{n:>{w}}" for n, w in zip(first["sampled"], widths, strict=True)))
    for name, evaluation in evaluations.items():
        for decoding in decodings:
            values = zip(evaluation[decoding].values(), widths, strict=True)
            cells = "".join(f"{_cell(x):>{w}}" for x, w in values)
            print(f"{name:<{width}}  {decoding:<8}{cells}")
    print()


def print_calibration(name: str, results: JsonObject) -> None:
    """Prints calibration, and the accuracy of one answer per prompt by selection rule and number of samples."""
    if "stated_calibration" in results:
        print(f"{name}: confidence is the one that {results['stated_share']:.0%} of the answers state")
        _print_figures(results["stated_calibration"], ".3f", 24)
        print()
    if "calibration" not in results:
        print(f"{name}: no calibration: {results.get('calibration_missing', 'it was not measured')}\n")
        return
    print(f"{name}: confidence is the likelihood per token")
    _print_figures(results["calibration"], ".3f", 24)
    sizes = list(next(iter(results["selection"].values())))
    print("\n  accuracy of one answer of" + "".join(f"{n:>9}" for n in sizes))
    for rule, row in results["selection"].items():
        print(f"  {rule:<25}" + "".join(f"{row[n]['mean']:>9.3f}" for n in sizes))
    print()


def _print_figures(figures: Mapping[str, Mapping[str, float]], form: str, width: int) -> None:
    for name, x in figures.items():
        print(f"  {name:<30}{_cell(x, form):>{width}}")


def _cell(x: Mapping[str, float], form: str = ".3f") -> str:
    return f"{x['mean']:{form}} [{x['low']:{form}}, {x['high']:{form}}]"
