"""Check that shared prompts give a model the log-probabilities and gradients of the plain forward.

MODEL is a run directory, a folder with a model, a hub name, or 'demo'. Every route that the model can take is compared
on a small random batch. The exit status is 0 when all agree, 1 when one does not or none can be taken.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibrant.policy import RouteCheck

EXAMPLES = """examples:
  calibrant check-prefix demo
  calibrant check-prefix Qwen/Qwen2.5-0.5B-Instruct --temperature 0.9
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("model", metavar="MODEL", help="run directory, folder, hub name, or 'demo'")
    parser.add_argument("--temperature", type=float, default=1.0, help="that logits are divided by (default: 1.0)")
    parser.add_argument("--seed", type=int, default=0, help="of the random batch (default: 0)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")


def run(options: argparse.Namespace) -> int:
    """Checks and prints a table."""
    from calibrant.checks import check_seed
    from calibrant.policy import check_prefix
    from calibrant.policy.models import load_policy, load_tokenizer, quiet_loading

    check_seed(options.seed)
    quiet_loading()
    trust = {"trust_remote_code": options.trust_remote_code}
    tokenizer, policy = load_tokenizer(options.model, **trust), load_policy(options.model, **trust)
    result = check_prefix(policy, tokenizer, seed=options.seed, temperature=options.temperature)
    dtype = str(result.dtype).removeprefix("torch.")
    print(f"{options.model}: {type(policy).__name__} in {dtype}, largest errors against the plain forward")
    print(f"{'route':<8}{'log-probability':>17}{'gradient':>10}")
    for route in result.routes:
        print(_line(route))
    print(f"{'allowed':<8}{result.tolerances[0]:>17.1e}{result.tolerances[1]:>10.1e}")
    return 0 if result.equal else 1


def _line(route: "RouteCheck") -> str:
    if route.obstacle is not None:
        return f"{route.route:<8}{'-':>17}{'-':>10}  not possible: {route.obstacle}"
    verdict = "equal" if route.equal else "DIFFERS"
    return f"{route.route:<8}{route.logp_error:>17.1e}{route.gradient_error:>10.1e}  {verdict}"
