"""Check that sharing prompts gives a model the samples, log-probabilities and gradients of the plain path.

MODEL is a run directory, a model folder, a hub name, or 'demo'. On a small random batch each route of log-probabilities
is compared with the plain forward, and generation after shared prompts with the model's own generate. A model for which
nothing is possible (one with recurrent layers, say) trains and evaluates by the plain path. The exit status is 1 when a
row differs and 0 otherwise.
"""

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibrant import options as declared
from calibrant.model_options import ModelOptions
from calibrant.options import POSITIVE, add_arguments, option, read

if TYPE_CHECKING:
    from calibrant.policy import RouteCheck

EXAMPLES = """examples:
  calibrant check-prefix demo
  calibrant check-prefix Qwen/Qwen2.5-0.5B-Instruct --temperature 0.9
"""


@dataclass(frozen=True)
class CheckPrefixSettings(ModelOptions):
    """Everything that decides a check."""

    model: str = ""
    temperature: float = option(1.0, "temperature that logits are divided by", limit=POSITIVE)
    seed: int = declared.seed()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the model and the options."""
    parser.add_argument("model", metavar="MODEL", help="run directory, model folder, hub name, or 'demo'")
    add_arguments(parser, CheckPrefixSettings)


def run(options: argparse.Namespace) -> int:
    """Checks, and prints a table."""
    settings = read(CheckPrefixSettings, vars(options))
    from calibrant.policy import check_prefix
    from calibrant.policy.models import load_model, quiet_loading

    quiet_loading()
    policy, tokenizer = load_model(settings.model, settings)
    result = check_prefix(policy, tokenizer, seed=settings.seed, temperature=settings.temperature)
    dtype = str(result.dtype).removeprefix("torch.")
    print(f"{settings.model}: {type(policy).__name__} in {dtype}, largest errors against the plain path")
    print(f"{'route':<11}{'log-probability':>17}{'gradient':>10}")
    for route in result.routes:
        print(_line(route))
    print(f"{'allowed':<11}{result.tolerances[0]:>17.1e}{result.tolerances[1]:>10.1e}")
    if all(route.obstacle is not None for route in result.routes):
        print("This model cannot share prompts: calibrant computes every rollout with its own prompt, as TRL does.")
        return 0
    return 0 if result.equal else 1


def _line(row: "RouteCheck") -> str:
    if row.obstacle is not None:
        return f"{row.route:<11}{'-':>17}{'-':>10}  not possible: {row.obstacle}"
    gradient = "-" if math.isnan(row.gradient_error) else f"{row.gradient_error:.1e}"
    return f"{row.route:<11}{row.logp_error:>17.1e}{gradient:>10}  {'equal' if row.equal else 'DIFFERS'}"
