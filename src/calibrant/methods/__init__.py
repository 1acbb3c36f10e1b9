"""Methods: functions from rewards and signals of groups to weights; `apply` multiplies the advantages by them.

A method is a function whose positional parameters name its inputs and whose keyword-only parameters are its
hyper-parameters, each with a default:

    def my_method(rewards, embeddings, where, *, alpha=0.6) -> Outcome: ...

`rewards` and `where` are always supplied; the others are names in `Groups.inputs` (a positional parameter with a
default is passed if it is there; `inputs.SOURCES` lists what training and rollout files supply). A method with memory
names `state`, a dictionary of tensors, empty at first, and returns the next one in its outcome. A method is named by
its key in `METHODS` or by its dotted path, e.g. `my_package.my_method`.

The docstrings of methods leave out what holds for all:

* They return an `Outcome`. `Scores:` lists its scores, `[N]` unless a shape is given; `empo`, `grpo_care` and `capo`
  return advantages of their own with weights 1.
* Inputs are `[N, G]` unless a shape is given, and follow `calibrant.groups`: a reward that is not finite marks an
  unscorable rollout; `where`, boolean, says which rollouts count; `clusters` are integers, equal for one meaning.
* `inputs.HYPERPARAMETERS` describes those that many methods share: `alpha`, `reward_range`, `mean_one`.
* `A_i` is the base advantage, GRPO's standardised one unless said otherwise, and `A~_i` the advantage that is trained.
* Scores and weights are finite, detached, and in the type of the rewards.
* CalibrantError is raised for shapes, options and lacking inputs that are not as documented.
* Certainty: (a) read in the authors' code, (a*) in code of others, (b) in the paper, (c) an interpretation.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibrant.methods.calling import (
        apply,
        check_hyperparameters,
        hyperparameters,
        name_of,
        optional_inputs,
        read_inputs,
        required_inputs,
        resolve_method,
        summary,
    )
    from calibrant.methods.inputs import SOURCES, missing_input
    from calibrant.methods.outcome import Method, Outcome, WeightedAdvantages
    from calibrant.methods.pages import Card, card
    from calibrant.methods.table import METHODS

__all__ = [
    "METHODS", "SOURCES", "Card", "Method", "Outcome", "WeightedAdvantages", "apply", "card", "check_hyperparameters",
    "hyperparameters", "missing_input", "name_of", "optional_inputs", "read_inputs", "required_inputs",
    "resolve_method",
    "summary",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Loads a public name or a method on first use: the command line reads `methods.recommended` without torch."""
    modules = [import_module(f"calibrant.methods.{module}") for module in ("table", "pages", "calling")]
    if name in __all__ or name in modules[0].METHODS:
        return next(getattr(module, name) for module in modules if hasattr(module, name))
    raise AttributeError(f"module 'calibrant.methods' has no attribute '{name}'")
