"""calibrant: GRPO-style post-training whose updates follow how uncertain and how informative each group is.

The public names are loaded on first use, so that `import calibrant` imports neither torch nor transformers.
"""
# ruff: noqa: F405

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibrant.gradients import gradient_variance
    from calibrant.groups import Groups
    from calibrant.methods import METHODS, apply
    from calibrant.policy import shared_prefix_logps
    from calibrant.signals import *  # noqa: F403
    from calibrant.signals.clusters import greedy_clusters
    from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

try:
    __version__ = version("calibrant")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = [
    "METHODS", "CalibratedGRPOConfig", "CalibratedGRPOTrainer", "Groups", "__version__", "answer_confidence",
    "apply", "barycentric_transport", "cluster_share", "cosine_dispersion", "gradient_snr_weight",
    "gradient_variance", "greedy_clusters", "group_token_entropy", "head_gradient_dispersion",
    "head_gradient_variance", "head_gram", "head_gram_from_weight", "kernel_language_entropy", "mean_logprob",
    "perplexity", "predictive_entropy", "reward_dispersion", "scored", "self_consistency", "semantic_entropy",
    "semantic_nearest_neighbour_entropy", "shared_prefix_logps", "token_entropy",
]  # fmt: skip

_MODULES = {
    "Groups": "calibrant.groups",
    "METHODS": "calibrant.methods",
    "apply": "calibrant.methods",
    "gradient_variance": "calibrant.gradients",
    "greedy_clusters": "calibrant.signals.clusters",
    "shared_prefix_logps": "calibrant.policy",
    "CalibratedGRPOConfig": "calibrant.trl",
    "CalibratedGRPOTrainer": "calibrant.trl",
}
"""Public name -> its module; the others are signals."""


if not TYPE_CHECKING:  # with a module's __getattr__, type checkers would accept any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'calibrant' has no attribute '{name}'")
        globals()[name] = value = getattr(import_module(_MODULES.get(name, "calibrant.signals")), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
