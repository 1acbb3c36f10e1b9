"""Signals: what a group of answers says of itself, as pure functions on tensors `[N, G, ...]` -> `[N]`.

An uncertainty grows with doubt, a confidence with certainty.
"""

from calibrant.signals.confidence import (
    answer_confidence,
    cluster_share,
    mean_logprob,
    perplexity,
    scored,
    self_consistency,
)
from calibrant.signals.dispersion import barycentric_transport, cosine_dispersion, reward_dispersion
from calibrant.signals.entropy import (
    group_token_entropy,
    kernel_language_entropy,
    predictive_entropy,
    semantic_entropy,
    semantic_nearest_neighbour_entropy,
    token_entropy,
)
from calibrant.signals.gradient import (
    gradient_snr_weight,
    head_gradient_dispersion,
    head_gradient_variance,
    head_gram,
    head_gram_from_weight,
)

__all__ = [
    "answer_confidence",
    "barycentric_transport",
    "cluster_share",
    "cosine_dispersion",
    "gradient_snr_weight",
    "group_token_entropy",
    "head_gradient_dispersion",
    "head_gradient_variance",
    "head_gram",
    "head_gram_from_weight",
    "kernel_language_entropy",
    "mean_logprob",
    "perplexity",
    "predictive_entropy",
    "reward_dispersion",
    "scored",
    "self_consistency",
    "semantic_entropy",
    "semantic_nearest_neighbour_entropy",
    "token_entropy",
]
