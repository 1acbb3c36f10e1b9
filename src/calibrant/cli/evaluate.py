"""Judge a model on the unseen split of a task: how good its answers are, and whether its confidence can be trusted.

MODEL is a run directory, a folder with a model, a hub name, or 'demo'; two of them are compared on the same prompts.
Greedy and sampled answers are judged by the task's metrics; of the sampled ones also calibration (does a higher
likelihood mean right more often?) and selection (votes, best of n, pass@k). Intervals are 95% bootstrap intervals over
prompts. With --out the results and the sampled answers are kept; --from-rollouts judges answers that exist already.
"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  calibrant evaluate demo
  calibrant evaluate runs/places-gcpo_bot-seed0 --prompts 311 --out judged
  calibrant evaluate demo runs/places-gcpo_bot-seed0
  calibrant evaluate demo-arithmetic --task arithmetic
  calibrant evaluate --from-rollouts judged/rollouts.parquet --task places
  calibrant evaluate my_model --task math500 --data-dir MATH --max-completion-length 1024
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", help="run directory, folder, hub name, 'demo' or 'demo-arithmetic'"
    )
    parser.add_argument("--task", default="places", help="see `calibrant tasks` (default: places)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the task's official files")
    parser.add_argument("--prompts", type=int, default=200, help="questions (default: 200)")
    parser.add_argument("--samples", type=int, default=16, help="sampled answers a question (default: 16)")
    parser.add_argument("--temperature", type=float, default=0.9, help="of sampling (default: 0.9)")
    parser.add_argument("--max-prompt-length", type=int, default=2048, help="tokens of a prompt (default: 2048)")
    parser.add_argument("--max-completion-length", type=int, help="tokens of an answer (default: the task's)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of the bootstrap (default: 0)")
    parser.add_argument("--from-rollouts", metavar="FILE", help="judge the answers of this file, without a model")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for evaluation.json and rollouts.parquet, the samples; a folder in it for each of two models",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")


def run(options: argparse.Namespace) -> int:
    """Evaluates, prints tables, writes files where asked."""
    from calibrant.checks import check_seed
    from calibrant.errors import CalibrantError

    for name in ("prompts", "samples", "temperature", "max_prompt_length"):
        if not 0 < getattr(options, name) < float("inf"):
            raise CalibrantError(f"option '{name}' is {getattr(options, name)}; it must be a positive number")
    if bool(options.models) == bool(options.from_rollouts) or len(options.models) > 2:
        raise CalibrantError("give one MODEL, or two to compare them, or --from-rollouts FILE")
    if len(set(options.models)) < len(options.models):
        raise CalibrantError(f"'{options.models[0]}' is given twice; give two models to compare them")
    check_seed(options.seed)
    _check_out(options)
    found = _from_file(options) if options.from_rollouts else _from_models(options)
    evaluations = {name: results for name, (results, _) in found.items()}
    print_table(evaluations)
    for name, results in evaluations.items():
        print_calibration(name, results)
    if len(found) == 2:
        print_differences({name: rows for name, (_, rows) in found.items()}, options)
    for name, (results, rows) in found.items():
        if options.out:
            _write(options, name, results, rows, several=len(found) > 1)
    return 0


def _check_out(options: argparse.Namespace) -> None:
    """Before anything is computed: what a run or an analysis holds would be written over."""
    from calibrant.errors import CalibrantError

    out = Path(options.out or "")
    if out.exists() and not out.is_dir():
        raise CalibrantError(f"'{out}' is a file; give --out a folder")
    if options.out and (out / "config.yaml").exists():
        raise CalibrantError(f"'{out}' holds a run or an analysis; give --out a folder of its own")
    if options.out and len({Path(name).name for name in options.models}) < len(options.models):
        shared = Path(options.models[0]).name
        raise CalibrantError(f"--out keeps both models in a folder '{shared}'; judge them one at a time")


def _from_models(options: argparse.Namespace) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    from calibrant.evaluate.evaluation import evaluate
    from calibrant.policy.models import load_policy, load_tokenizer, quiet_loading
    from calibrant.tasks import resolve
    from calibrant.tasks.prompts import fit_to

    quiet_loading()
    task, found = resolve(options.task), {}
    folder = Path(options.data_dir) if options.data_dir else None
    rows = task.load(task.splits[-1], options.prompts, 0, data_dir=folder)
    for name in options.models:
        trust = {"trust_remote_code": options.trust_remote_code}
        tokenizer, policy = load_tokenizer(name, **trust), load_policy(name, **trust)
        length = options.max_completion_length or task.max_completion_length
        fitted = fit_to(rows, tokenizer, options.max_prompt_length, length)
        results, answers = evaluate(
            policy, tokenizer, task, fitted, samples=options.samples, temperature=options.temperature,
            max_completion_length=length, seed=options.seed,
        )  # fmt: skip
        found[name] = (results | {"split": task.splits[-1], "model": name}, answers)
    return found


def _from_file(options: argparse.Namespace) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    from calibrant.errors import CalibrantError
    from calibrant.evaluate.evaluation import evaluate_rollouts
    from calibrant.rollouts import group_keys, read_rollouts
    from calibrant.tasks import resolve

    judged_by = ("references", "correct")
    frame = read_rollouts(options.from_rollouts, judged_by)
    if all(frame[name].isna().all() for name in judged_by if name in frame):
        raise CalibrantError(f"'{options.from_rollouts}' has no value in references or correct; fill one of them in")
    group_keys(frame, options.from_rollouts)
    return {options.from_rollouts: evaluate_rollouts(frame, resolve(options.task), seed=options.seed)}


def _write(
    options: argparse.Namespace, name: str, results: dict[str, Any], rows: list[dict[str, Any]], *, several: bool
) -> None:
    from calibrant.files import write_json
    from calibrant.rollouts import write_rollouts

    folder = Path(options.out) / Path(name).name if several else Path(options.out)
    write_rollouts(folder / "rollouts.parquet", rows)
    write_json(folder / "evaluation.json", results)
    print(f"written: {folder}")


def print_table(evaluations: dict[str, dict[str, Any]]) -> None:
    """Prints evaluations, one line a decoding: mean and 95% interval of each metric."""
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
    """Prints calibration, and the accuracy of one answer a prompt by each rule and number of samples."""
    if "calibration" not in results:
        print(f"{name}: no calibration: {results.get('calibration_missing', 'it was not measured')}\n")
        return
    print(f"{name}: confidence is the likelihood a token")
    for figure, value in results["calibration"].items():
        print(f"  {figure:<30}{_cell(value):>24}")
    sizes = list(next(iter(results["selection"].values())))
    print("\n  accuracy of one answer of" + "".join(f"{n:>9}" for n in sizes))
    for rule, row in results["selection"].items():
        print(f"  {rule:<25}" + "".join(f"{row[n]['mean']:>9.3f}" for n in sizes))
    print()


def print_differences(answers: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """Prints what the second model has more than the first, on the same prompts, with paired intervals."""
    from calibrant.evaluate.evaluation import differences
    from calibrant.tasks import resolve

    (first, before), (second, after) = answers.items()
    print(f"{second} minus {first}, sampled, paired by prompt")
    for name, value in differences(resolve(options.task), before, after, seed=options.seed).items():
        print(f"  {name:<30}{_cell(value, sign=True):>26}")
    print()


def _cell(x: dict[str, float], *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{x['mean']:{form}} [{x['low']:{form}}, {x['high']:{form}}]"
