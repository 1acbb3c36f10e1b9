"""Score the rollouts of a file: every signal and weight, without a trainer and, for most methods, without a model.

FILE is Parquet or JSON Lines with one row per rollout: prompt_id, completion, and reward or correct. Rollouts of one
prompt are a group. Further columns are inputs of further methods: logprob and num_tokens, ref_logprob, token_entropy,
references, cluster; the inputs that a method lacks are listed. --out writes the rows with one more column per score
and, per method, METHOD/weight and METHOD/advantage.
"""

import argparse
from typing import TYPE_CHECKING

from calibrant.options import add_arguments, read
from calibrant.score.settings import ScoreSettings

if TYPE_CHECKING:
    from calibrant.score.command import ScoredFile

EXAMPLES = """examples:
  calibrant score rollouts.jsonl
  calibrant score runs/places-gcpo_bot-seed0/rollouts/evaluation-after.parquet --method seed_grpo --alpha 1
  calibrant score runs/places-gcpo_bot-seed0/rollouts/step-000060.parquet --method grpo_se --method-options shape=linear
  calibrant score rollouts.parquet --reward-range 0 1 --out scored.parquet
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the file and the options."""
    parser.add_argument("file", metavar="FILE", help="rollout file, .parquet or .jsonl")
    add_arguments(parser, ScoreSettings)


def run(options: argparse.Namespace) -> int:
    """Scores, prints a table and writes the file."""
    settings = read(ScoreSettings, vars(options))
    from calibrant.score.command import score_file

    print_scored(score_file(settings))
    if settings.out:
        print(f"written: {settings.out}")
    return 0


def print_scored(file: "ScoredFile") -> None:
    """Prints statistics of each method's weights and of each signal, and why methods were not applied."""
    from calibrant.methods import resolve_method
    from calibrant.score.methods import distinct_scores
    from calibrant.scorer import batch_statistics, flat_weights

    where = next(iter(file.scored.values())).groups.where
    print(f"{len(where)} groups, {int(where.sum())} scorable rollouts\n")
    print(
        f"{'method':<12}{'weight: mean':>14}{'lowest':>10}{'highest':>10}{'variation':>11}{'uninformative groups':>24}"
    )
    for name, scored in file.scored.items():
        values = batch_statistics(scored, file.reward_range)
        mean, low, high = (values.get(f"group/weight/{kind}", 1.0) for kind in ("mean", "min", "max"))
        variation = values.get("group/weight/std", 0.0) / max(mean, 1e-12)
        print(
            f"{name:<12}{mean:>14.4f}{low:>10.4f}{high:>10.4f}{variation:>11.1%}{values['group/uninformative']:>15.1%}"
        )
    if len(file.scored) == 1:
        ((name, scored),) = file.scored.items()
        weights = scored.outcome.weights[where.sum(-1) >= 2].flatten(1).mean(-1)
        if sentence := flat_weights(weights, resolve_method(name)):
            print(f"\n{sentence}")
    print(f"\n{'signal':<44}{'mean':>10}{'lowest':>10}{'highest':>10}")
    for name, score in distinct_scores(file.scored).items():
        kept = score[where] if score.ndim == 2 else score
        print(f"{name:<44}{kept.mean():>10.4f}{kept.min():>10.4f}{kept.max():>10.4f}")
    for name, reason in file.refused.items():
        short = reason.removeprefix(f"method '{name}' ").removeprefix(f"{name} ")
        print(f"\nnot applied: {name}: {short}", end="")
    print()
