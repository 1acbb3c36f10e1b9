"""Look before training: which uncertainty signal follows the gradient variance of your model on your data.

Groups of answers are sampled (or read, with --from-rollouts), and for each the exact variance V(q) of its policy
gradient is computed beside every signal that a method can read. Tables and figures are those of the GCPO paper
(tables 3 and 4, figure 1, appendix D), and a recommendation says which signal and method, how strong alpha may be, and
how many groups teach anything. Started again, it goes on where it was stopped: --out is then the same, or not given.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  calibrant analyze
  calibrant analyze --model Qwen/Qwen2.5-1.5B-Instruct --task narrativeqa --queries 1000
  calibrant analyze --model runs/places-gcpo_bot-seed0 --from-rollouts judged/rollouts.parquet
  calibrant analyze --model my_model --task qasper --parameters 'model.layers.2?.*' --out runs/late_layers
  calibrant analyze --entailment-model roberta-large-mnli --entailment-dtype bfloat16
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from calibrant.cli.options import add_text_models

    add = parser.add_argument
    add("--model", help="run directory, folder, or hub name (default: the task's embedded policy)")
    add("--task", default="places", help="see `calibrant tasks` (default: places)")
    add("--data-dir", metavar="DIR", help="folder with the task's official files")
    add("--split", help="of the data (default: the split that training reads, where the decision is made)")
    add("--queries", type=int, help="prompts; the same --out may be asked for more (default: 200, or all of the file)")
    add("--rollouts", type=int, default=16, help="answers sampled a prompt, G (default: 16)")
    add("--temperature", type=float, default=0.9, help="of sampling and of the gradient (default: 0.9)")
    add("--max-prompt-length", type=int, default=2048, help="tokens of a prompt (default: 2048)")
    add("--max-completion-length", type=int, help="tokens of an answer (default: the task's)")
    add("--seed", type=int, default=0, help="of the prompts and of sampling (default: 0)")
    add(
        "--parameters", nargs="+", metavar="PATTERN", help="parameters whose gradient is meant (default: all trainable)"
    )
    add_text_models(parser)
    add("--from-rollouts", metavar="FILE", help="take answers, rewards and clusters of this file; gradients of --model")
    add("--trust-remote-code", action="store_true", help="run code that comes with a hub model")
    add("--out", metavar="DIR", help="directory (default: runs/analyze-TASK-MODEL-seedN, or -FILE)")


def run(options: argparse.Namespace) -> int:
    """Measures, writes tables and report, prints the recommendation."""
    from calibrant.analyze.collect import collect
    from calibrant.analyze.results import write_results
    from calibrant.analyze.settings import AnalyzeSettings
    from calibrant.analyze.store import default_path
    from calibrant.report import write_analysis_report
    from calibrant.train.settings import embedded_policy

    given = {name: value for name, value in vars(options).items() if name != "out"}
    given["model"] = embedded_policy(options.task) if options.model is None else options.model
    given["parameters"] = tuple(options.parameters) if options.parameters else None
    settings = AnalyzeSettings(**given)
    path = Path(options.out) if options.out else default_path(settings)
    try:
        analysis = collect(settings, path)
    except KeyboardInterrupt:
        print(f"calibrant: stopped; the same command with --out {path} goes on", file=sys.stderr)
        return 130
    results = write_results(analysis)
    report = write_analysis_report(path)
    print_results(results)
    print(f"directory: {path}\nreport:    {report}")
    return 0


def print_results(results: dict[str, Any]) -> None:
    """Prints how closely signals follow V(q) and the success rate, and the recommendation."""
    counts, tables = results["counts"], results["tables"]
    print(
        f"\n{results['task']}, {results['model']}: {counts['groups']} groups of {results['rollouts']} answers, "
        f"{counts['informative']} with reward spread"
    )
    variance, success = tables["gradient_variance"], tables.get("success_rate", {})
    columns = {
        "V(q), all": variance.get("all"),
        f"without the top {results['outliers']}": variance.get("without_outliers"),
        "V(q), with spread": variance.get("informative"),
        "success rate": success.get("all"),
    }
    found = {name: table for name, table in columns.items() if table}
    if found:
        _print_table(found)
    for sentence in results["recommendation"]["words"]:
        print(sentence)
    print()


def _print_table(found: dict[str, Any]) -> None:
    from calibrant.report.formats import rho_text
    from calibrant.report.names import label

    last = found.get("V(q), with spread") or next(iter(found.values()))
    names = sorted(last["rows"], key=lambda name: -last["rows"][name]["rho"])
    width = max(len(label(name)) for name in names)
    print(f"\n{'rank correlation with':<{width}}" + "".join(f"{name:>22}" for name in found))
    for name in names:
        cells = (rho_text(table["rows"][name]) if name in table["rows"] else "-" for table in found.values())
        print(f"{label(name):<{width}}" + "".join(f"{cell:>22}" for cell in cells))
    print()
