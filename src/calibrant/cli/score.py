"""Score existing rollouts: every signal and weight, without a trainer and, for most methods, without a model.

FILE is a file, a folder, a pattern such as 'runs/*/completions/*.parquet', or a data set of the hub (NAME/NAME, with
:CONFIG), of JSON Lines, JSON, CSV or Parquet, .gz or .zst too, with one row per rollout: prompt_id (or prompt),
completion, and reward or correct. Rollouts of one prompt, and one step where there are steps, are a group. Files of
TRL, verl, OpenRLHF and lm-evaluation-harness are read as they are; other columns are named with --columns. Further
columns are inputs of further methods: logprob and num_tokens, ref_logprob, token_entropy, references, cluster; the
inputs that a method lacks are listed. --out writes the rows with one more column per score and, per method,
METHOD/weight and METHOD/advantage. Where there is no reward, --task rewards the answers by their references. Rollouts
of any number are read in units of about 16,000.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from calibrant.options import add_arguments, read
from calibrant.score.settings import ScoreSettings

if TYPE_CHECKING:
    from calibrant.score.command import ScoredFile

EXAMPLES = """examples:
  calibrant score rollouts.jsonl
  calibrant score runs/places-gcpo_bot-seed0 --method seed_grpo --alpha 1
  calibrant score runs/places-gcpo_bot-seed0/rollouts/step-000060.parquet --method grpo_se --method-options shape=linear
  calibrant score 'dumps/*.jsonl' --format verl --reward-range 0 1 --out scored.parquet
  calibrant score trl_output --columns reward=accuracy_reward
  calibrant score mine.csv --columns prompt_id=uid,completion=output,reward=score
  calibrant score results/samples_gsm8k.jsonl --format lm-eval --filter flexible-extract
  calibrant score large.jsonl.zst --no-embeddings --jobs 2 --out scored
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the file and the options."""
    parser.add_argument("file", metavar="FILE", help="rollouts: file, folder, pattern, or data set of the hub")
    add_arguments(parser, ScoreSettings)


def run(options: argparse.Namespace) -> int:
    """Scores, prints a table and writes the file."""
    settings = read(ScoreSettings, vars(options))
    from calibrant.score.command import score_file

    print_scored(score_file(settings, lambda note: print(note, file=sys.stderr)))
    if settings.out:
        print(f"written: {settings.out}")
    return 0


def print_scored(file: "ScoredFile") -> None:
    """Prints statistics of each method's weights and of each signal, and why methods were not applied."""
    from calibrant.methods import resolve_method
    from calibrant.scorer import flat_spread

    summary = file.summary
    print(f"{summary.groups} groups, {summary.scorable} scorable rollouts\n")
    print(
        f"{'method':<12}{'weight: mean':>14}{'lowest':>10}{'highest':>10}{'variation':>11}{'uninformative groups':>24}"
    )
    for name in file.methods:
        weight, alone = summary.weights[name], summary.uninformative[name] / summary.groups
        print(
            f"{name:<12}{weight.mean:>14.4f}{weight.low:>10.4f}{weight.high:>10.4f}"
            f"{weight.std / max(weight.mean, 1e-12):>11.1%}{alone:>15.1%}"
        )
    if len(file.methods) == 1:
        (name,) = file.methods
        weight = summary.group_weights[name]
        if sentence := flat_spread(weight.std / max(weight.mean, 1e-12), weight.count, resolve_method(name)):
            print(f"\n{sentence}")
    print(f"\n{'signal':<44}{'mean':>10}{'lowest':>10}{'highest':>10}")
    for name, score in summary.scores.items():
        print(f"{name:<44}{score.mean:>10.4f}{score.low:>10.4f}{score.high:>10.4f}")
    for name, reason in summary.refused.items():
        short = reason.removeprefix(f"method '{name}' ").removeprefix(f"{name} ")
        partly = " to some of the groups" if name in file.methods else ""
        print(f"\nnot applied{partly}: {name}: {short}", end="")
    print()
