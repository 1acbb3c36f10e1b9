"""Judge a model on the unseen split of a task: F1, exact match and accuracy of greedy and of sampled answers.

MODEL is a run directory, a folder with a model, a hub name, or 'demo'. Intervals are 95% bootstrap intervals over
prompts. With --out the results and the sampled answers are kept.
"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  calibrant evaluate demo
  calibrant evaluate runs/places-gcpo_bot-seed0 --prompts 500 --out judged
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", metavar="MODEL", help="run directory, folder, hub name, or 'demo'")
    parser.add_argument("--task", default="places", help="see `calibrant tasks` (default: places)")
    parser.add_argument("--prompts", type=int, default=200, help="questions (default: 200)")
    parser.add_argument("--samples", type=int, default=16, help="sampled answers a question (default: 16)")
    parser.add_argument("--temperature", type=float, default=0.9, help="of sampling (default: 0.9)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (default: 0)")
    parser.add_argument("--out", metavar="DIR", help="folder for evaluation.json and the sampled answers")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")


def run(options: argparse.Namespace) -> int:
    """Evaluates, prints a table, writes files where asked."""
    from calibrant.errors import CalibrantError
    from calibrant.evaluation import evaluate
    from calibrant.files import write_json
    from calibrant.models import load_policy, load_tokenizer, quiet_loading
    from calibrant.rollouts import write_rollouts
    from calibrant.tasks import resolve

    for name in ("prompts", "samples", "temperature"):
        if not 0 < getattr(options, name) < float("inf"):
            raise CalibrantError(f"option '{name}' is {getattr(options, name)}; it must be a positive number")
    quiet_loading()
    task = resolve(options.task)
    trust = {"trust_remote_code": options.trust_remote_code}
    tokenizer, policy = load_tokenizer(options.model, **trust), load_policy(options.model, **trust)
    rows = task.load(task.splits[-1], options.prompts, 0)
    results, samples = evaluate(
        policy, tokenizer, task, rows, samples=options.samples, temperature=options.temperature, seed=options.seed
    )
    results |= {"split": task.splits[-1], "model": options.model}
    print_table({options.model: results})
    if options.out:
        write_rollouts(Path(options.out) / "rollouts.parquet", samples)
        write_json(Path(options.out) / "evaluation.json", results)
        print(f"written: {options.out}")
    return 0


def print_table(evaluations: dict[str, dict[str, Any]]) -> None:
    """Prints evaluations, one line a decoding: mean and 95% interval of each metric."""
    first = next(iter(evaluations.values()))
    width = max(len(name) for name in evaluations)
    print(
        f"\n{first['task']}, {first['split']} split: {first['prompts']} prompts, greedy and "
        f"{first['samples']} samples at temperature {first['temperature']}"
    )
    print(f"{'':<{width}}  {'':<8}" + "".join(f"{name:>26}" for name in first["greedy"]))
    for name, evaluation in evaluations.items():
        for decoding in ("greedy", "sampled"):
            cells = (f"{x['mean']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" for x in evaluation[decoding].values())
            print(f"{name:<{width}}  {decoding:<8}" + "".join(f"{cell:>26}" for cell in cells))
    print()
