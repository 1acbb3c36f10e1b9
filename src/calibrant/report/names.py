"""What is measured of a group: signals, the quantities that they are compared with, and their names in words."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Signal(NamedTuple):
    """A signal in words, in short, and +1 if it grows with doubt, -1 if it is compared turned round."""

    words: str
    short: str
    sign: int = 1


SIGNALS = {
    "token_entropy": Signal("token entropy", "token entropy"),
    "predictive_entropy": Signal("predictive entropy (nats a sequence)", "predictive entropy"),
    "mean_logprob": Signal("mean log-likelihood a token, turned round", "log-likelihood", -1),
    "semantic_entropy": Signal("semantic entropy, by likelihood", "SE, by likelihood"),
    "semantic_entropy_discrete": Signal("semantic entropy, counted", "SE, counted"),
    "kernel_language_entropy": Signal("kernel language entropy", "KLE"),
    "semantic_nearest_neighbour_entropy": Signal("semantic nearest-neighbour entropy", "SNNE"),
    "self_consistency": Signal("self-consistency, turned round", "self-consistency", -1),
    "cosine_dispersion": Signal("cosine dispersion (CD)", "CD"),
    "barycentric_transport": Signal("barycentric transport (BoT)", "BoT"),
    "reward_dispersion": Signal("reward dispersion (RD)", "RD"),
    "reward_mean": Signal("mean reward, turned round", "mean reward", -1),
    "head_gradient_variance": Signal("head gradient variance (with advantages)", "head V(q)"),
    "head_score_variance": Signal("head gradient variance (without advantages)", "head V without A"),
    "head_gradient_dispersion": Signal("head gradient dispersion", "head dispersion"),
    "gradient_snr_weight": Signal("signal share of the head gradient, turned round", "head signal share", -1),
}
"""Every signal, in the order of tables. Confidences are turned round, so that all of them grow with doubt."""

TARGETS = {
    "gradient_variance": "gradient variance V(q)",
    "score_variance": "gradient variance without advantages",
    "mean_norm_squared": "squared norm of the update",
    "success_rate": "success rate",
}
"""What signals are compared with."""

SUBSETS = {
    "all": "all groups",
    "without_outliers": "without the largest V(q)",
    "informative": "groups with reward spread",
}
"""Which groups a table is of."""

OUTCOMES = ("informative", "all_right", "all_wrong", "equal")
"""What the rewards of a group are: spread, or equal with all answers right, with all wrong, or otherwise."""

PAPER_ORDER = ("barycentric_transport", "cosine_dispersion", "semantic_entropy_discrete", "token_entropy")
"""How closely signals follow V(q) in the paper, closest first (figure 1)."""


def words(signal: str) -> str:
    """A signal in words.

    >>> words("cosine_dispersion")
    'cosine dispersion (CD)'
    """
    return SIGNALS[signal].words


def decimal(x: float) -> str:
    """Two decimals, with a sign where negative.

    >>> decimal(-0.001), decimal(0.5)
    ('0.00', '0.50')
    """
    return f"{round(x, 2) + 0.0:.2f}"


def interval(row: Mapping[str, Any]) -> str:
    """`0.62 [0.50, 0.71]`."""
    return f"{decimal(row['rho'])} [{decimal(row['low'])}, {decimal(row['high'])}]"
