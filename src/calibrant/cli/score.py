"""Score rollouts that exist already: every signal and weight, without a trainer and, for most, without a model.

FILE is Parquet or JSON Lines with one row a rollout: prompt_id, completion, and reward or correct. Rollouts of one
prompt are a group. More columns make more methods possible: logprob and num_tokens, ref_logprob, token_entropy,
references, cluster; what a method lacks is said. With --out the rows are written again, with a column for each score
and, of each method, METHOD/weight and METHOD/advantage.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  calibrant score rollouts.jsonl
  calibrant score runs/places-gcpo_bot-seed0/rollouts/evaluation-after.parquet --method seed_grpo --alpha 1
  calibrant score runs/places-gcpo_bot-seed0/rollouts/step-000060.parquet --method grpo_se --method-options shape=linear
  calibrant score rollouts.parquet --reward-range 0 1 --out scored.parquet
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from calibrant.cli.options import add_text_models
    from calibrant.cli.train import assignment

    parser.add_argument("file", metavar="FILE", help="rollouts, .parquet or .jsonl")
    parser.add_argument(
        "--method",
        help="a name, or the dotted path of your own function; all that the file has the inputs of when not given",
    )
    parser.add_argument("--alpha", type=float, help="strength of the weights, with --method")
    parser.add_argument("--mean-one", action="store_true", help="divide the weights by their mean, with --method")
    parser.add_argument(
        "--method-options",
        action="append",
        type=assignment,
        metavar="NAME=VALUE",
        help="further hyper-parameters, with --method; the option once for each",
    )
    parser.add_argument("--task", help="reads answers and keys as this task does; see `calibrant tasks`")
    parser.add_argument(
        "--reward-range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="default: the task's, or 0 2"
    )
    parser.add_argument("--meaning", choices=("answer", "completion"), help="text with the meaning (default: answer)")
    add_text_models(parser)
    parser.add_argument("--out", metavar="FILE", help="where the scored rollouts go, .parquet or .jsonl")


def run(options: argparse.Namespace) -> int:
    """Scores, prints a table, writes the file where asked."""
    from calibrant.errors import CalibrantError
    from calibrant.methods import METHODS, resolve
    from calibrant.policy.models import quiet_loading
    from calibrant.rollouts import RolloutGroups, read_rollouts, write_rollouts
    from calibrant.score.methods import score, score_all, with_scores
    from calibrant.scorer import options_of

    sys.path.insert(0, str(Path.cwd()))  # a method of the user's own is found as `calibrant train` finds it
    quiet_loading()
    _check_out(options)
    task = _task(options)
    options.method_options = dict(options.method_options or [])
    options.reward_range = tuple(options.reward_range or (task.reward_range if task else (0.0, 2.0)))
    meaning = options.meaning or (task.meaning if task else "answer")
    extract = task.extract if task else str.strip
    groups = RolloutGroups(read_rollouts(options.file), extract, options.file)
    if not groups.rewards.isfinite().any():
        raise CalibrantError(f"'{options.file}' has no finite reward, and no 'correct' instead; fill one of them in")
    methods = {options.method: resolve(options.method)} if options.method else METHODS
    readers = _readers(options, task, list(methods.values()))
    if options.method:
        method = methods[options.method]
        refused: dict[str, str] = {}
        scored = {options.method: score(groups, method, options_of(method, options), readers, meaning)}
    else:
        _refuse_options(options)
        scored, refused = score_all(groups, list(METHODS), options, readers, meaning)
    _print(scored, refused, options.reward_range)
    if options.out:
        print(f"written: {write_rollouts(options.out, with_scores(groups, scored))}")
    return 0


def _task(options: argparse.Namespace) -> Any:
    from calibrant.tasks import resolve

    return resolve(options.task) if options.task else None


def _check_out(options: argparse.Namespace) -> None:
    """Before anything is computed; another ending is another file's name, which would be lost."""
    from calibrant.errors import CalibrantError

    out = Path(options.out or ".parquet")
    if not out.name.endswith((".parquet", ".jsonl")) or out.is_dir():
        raise CalibrantError(f"--out '{out}' is no name of a rollout file; end it in .parquet or .jsonl")


def _refuse_options(options: argparse.Namespace) -> None:
    from calibrant.errors import CalibrantError

    if options.alpha is not None or options.mean_one or options.method_options:
        raise CalibrantError("--alpha, --mean-one and --method-options belong to one method; name it with --method")


def _readers(options: argparse.Namespace, task: Any, methods: list[Any]) -> Any:
    from calibrant.scorer import named_inputs
    from calibrant.text.inputs import by_key
    from calibrant.text.metrics import normalise_answer
    from calibrant.text.readers import load_readers

    named = {name for method in methods for name in named_inputs(method)}
    same = task.clusters if task else by_key(normalise_answer)
    return load_readers(named, options, same, task.correct_batch if task else None)


def _print(scored: dict[str, Any], refused: dict[str, str], reward_range: tuple[float, float]) -> None:
    from calibrant.score.methods import distinct_scores
    from calibrant.scorer import summary

    some = next(iter(scored.values()))
    found = {name: summary(one, reward_range) for name, one in scored.items()}
    print(f"{len(some.groups.rewards)} groups, {int(some.groups.where.sum())} scorable rollouts\n")
    print(f"{'method':<12}{'weight: mean':>14}{'lowest':>10}{'highest':>10}{'groups that teach nothing':>28}")
    for name, values in found.items():
        weights = (values.get(f"group/weight/{kind}", 1.0) for kind in ("mean", "min", "max"))
        mean, low, high = weights
        print(f"{name:<12}{mean:>14.4f}{low:>10.4f}{high:>10.4f}{values['group/uninformative']:>28.1%}")
    print(f"\n{'signal':<44}{'mean':>10}{'lowest':>10}{'highest':>10}")
    for name, score in distinct_scores(scored).items():
        kept = score[some.groups.where] if score.ndim == 2 else score
        print(f"{name:<44}{kept.mean():>10.4f}{kept.min():>10.4f}{kept.max():>10.4f}")
    for name, reason in refused.items():
        print(f"\nnot applied: {name}: {reason}", end="")
    print()
