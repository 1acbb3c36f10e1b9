"""Every method: rewards and signals of groups go in, weights come out; `apply` multiplies the advantages by them.

A method is a function whose positional parameters name its inputs and whose keyword-only parameters are its
hyper-parameters, each with a default:

    def mine(rewards, embeddings, where, *, alpha=0.6) -> Outcome: ...

`rewards` and `where` are always there; the others are names in `Groups.inputs` (a positional parameter with a default
is passed if it is there; `inputs.SOURCES` lists what training and rollout files supply). A method with memory names
`state`, a dictionary of tensors, empty at first, and returns the next one in its outcome. A method is named by its key
in `METHODS` or by its dotted path, e.g. `my_package.mine`.

The docstrings of methods leave out what holds for all:

* Inputs are `[N, G]` unless a shape is given, and follow `calibrant.groups`: a reward that is not finite marks an
  unscorable rollout; `where`, boolean, says which rollouts count; `clusters` are integers, equal for one meaning.
* `inputs.HYPERPARAMETERS` describes those that many methods share: `alpha`, `reward_range`, `mean_one`.
* `A_i` is the base advantage, GRPO's standardised one unless said otherwise, and `A~_i` the advantage that is trained.
* Scores and weights are finite, detached, and in the type of the rewards.
* CalibrantError is raised where shapes or options are not as documented.
* Certainty: (a) read in the authors' code, (a*) in code of others, (b) in the paper, (c) an interpretation.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibrant.methods.asymmetric import egpo
    from calibrant.methods.calling import (
        apply,
        check_hyperparameters,
        hyperparameters,
        name_of,
        optional_inputs,
        required_inputs,
        resolve_method,
        summary,
    )
    from calibrant.methods.consensus import empo, grpo_care
    from calibrant.methods.gcpo import gcpo_bot, gcpo_cd, gcpo_grad, rd_only
    from calibrant.methods.inputs import SOURCES, missing_input
    from calibrant.methods.outcome import Method, Outcome, WeightedAdvantages
    from calibrant.methods.pages import Card, card
    from calibrant.methods.plain import dr_grpo, grpo, rloo
    from calibrant.methods.ranking import capo
    from calibrant.methods.semantic import grpo_kle, grpo_se, seed_grpo
    from calibrant.methods.shrinkage import gradient_snr
    from calibrant.methods.table import METHODS
    from calibrant.methods.tokens import edge_grpo, eg_spo
    from calibrant.methods.variance import q_hawkeye, r2vpo

__all__ = [
    "METHODS",
    "SOURCES",
    "Card",
    "Method",
    "Outcome",
    "WeightedAdvantages",
    "apply",
    "capo",
    "card",
    "check_hyperparameters",
    "dr_grpo",
    "edge_grpo",
    "eg_spo",
    "egpo",
    "empo",
    "gcpo_bot",
    "gcpo_cd",
    "gcpo_grad",
    "gradient_snr",
    "grpo",
    "grpo_care",
    "grpo_kle",
    "grpo_se",
    "hyperparameters",
    "missing_input",
    "name_of",
    "optional_inputs",
    "q_hawkeye",
    "r2vpo",
    "rd_only",
    "required_inputs",
    "resolve_method",
    "rloo",
    "seed_grpo",
    "summary",
]


def __getattr__(name: str) -> object:
    """Loads a public name on first use, so that `methods.recommended` imports no torch."""
    if name in __all__:
        for module in ("table", "pages", "calling"):
            value = getattr(import_module(f"calibrant.methods.{module}"), name, None)
            if value is not None:
                globals()[name] = value
                return value
    raise AttributeError(f"module 'calibrant.methods' has no attribute '{name}'")
