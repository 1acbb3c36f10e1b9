"""Signals of an analysis and the quantities they are compared with: names in files, labels in tables."""

from typing import NamedTuple


class Signal(NamedTuple):
    """Label in tables, short label in figures, and +1 for an uncertainty, -1 for a confidence, which is negated."""

    label: str
    short: str
    sign: int = 1


SIGNALS = {
    "token_entropy": Signal("token entropy", "token entropy"),
    "predictive_entropy": Signal("predictive entropy (nats per sequence)", "predictive entropy"),
    "mean_logprob": Signal("mean log-likelihood per token, negated", "log-likelihood", -1),
    "semantic_entropy": Signal("semantic entropy, by likelihood", "SE, by likelihood"),
    "semantic_entropy_discrete": Signal("semantic entropy, by counts", "SE, by counts"),
    "kernel_language_entropy": Signal("kernel language entropy", "KLE"),
    "semantic_nearest_neighbour_entropy": Signal("semantic nearest-neighbour entropy", "SNNE"),
    "self_consistency": Signal("self-consistency, negated", "self-consistency", -1),
    "cosine_dispersion": Signal("cosine dispersion (CD)", "CD"),
    "barycentric_transport": Signal("barycentric transport (BoT)", "BoT"),
    "reward_dispersion": Signal("reward dispersion (RD)", "RD"),
    "reward_mean": Signal("mean reward, negated", "mean reward", -1),
    "head_gradient_variance": Signal("head gradient variance (with advantages)", "head V(q)"),
    "head_score_variance": Signal("head gradient variance (without advantages)", "head V without A"),
    "head_gradient_dispersion": Signal("head gradient dispersion", "head dispersion"),
    "gradient_snr_weight": Signal("signal share of the head gradient, negated", "head signal share", -1),
    "block_gradient_variance": Signal("last block gradient variance (with advantages)", "block V(q)"),
    "block_score_variance": Signal("last block gradient variance (without advantages)", "block V without A"),
    "block_gradient_dispersion": Signal("last block gradient dispersion", "block dispersion"),
    "block_signal_share": Signal("signal share of the last block gradient, negated", "block signal share", -1),
}
"""Every signal, in the order of tables. Confidences are negated, so that larger means more uncertain."""

TARGETS = {
    "gradient_variance": "gradient variance V(q)",
    "score_variance": "gradient variance without advantages",
    "mean_norm_squared": "squared norm of the update",
    "success_rate": "success rate",
}
"""The quantities that signals are compared with."""

SUBSETS = {
    "all": "all groups",
    "without_outliers": "without the largest V(q)",
    "informative": "groups with reward spread",
}
"""The groups that a table covers."""

OUTCOMES = ("informative", "all_right", "all_wrong", "equal")
"""Rewards of a group: with spread, or equal with all answers right, with all wrong, or otherwise."""

PAPER_ORDER = ("barycentric_transport", "cosine_dispersion", "semantic_entropy_discrete", "token_entropy")
"""Signals of the paper by rank correlation with V(q), closest first (figure 1)."""


def label(signal: str) -> str:
    """The label of a signal as it is compared.

    >>> label("cosine_dispersion"), label("self_consistency")
    ('cosine dispersion (CD)', 'self-consistency, negated')
    """
    return SIGNALS[signal].label


def raw_label(signal: str) -> str:
    """The label of a signal as it was measured, before any negation.

    >>> raw_label("self_consistency")
    'self-consistency'
    """
    return label(signal).removesuffix(", negated")
