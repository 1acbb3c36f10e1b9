"""Signals: uncertainty, confidence and gradients of groups of answers, as pure functions on tensors `[N, G, ...]`.

An uncertainty grows with doubt, a confidence with certainty. The docstrings of functions leave out what holds for all:

* The conventions are those of `calibrant.groups`: `where` `[..., N, G]`, boolean, says which rollouts count.
* `clusters` `[..., N, G]` are integers; equal numbers in a group mean one cluster, whatever the numbers are.
* `mask` `[..., N, G, T]`, boolean or integers 0 and 1, says which tokens count; `logprobs` of the same shape are
  log-probabilities of the sampled tokens.
* Results are computed in float64, finite, detached, and returned in the type of the first argument. Entropies are nats.
* CalibrantError is raised where shapes or options are not as documented.
* Sources: (a) read in the authors' code, (a*) in code of others, (b) in the paper, (c) an interpretation.
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
    "answer_confidence", "barycentric_transport", "cluster_share", "cosine_dispersion", "gradient_snr_weight",
    "group_token_entropy", "head_gradient_dispersion", "head_gradient_variance", "head_gram", "head_gram_from_weight",
    "kernel_language_entropy", "mean_logprob", "perplexity", "predictive_entropy", "reward_dispersion", "scored",
    "self_consistency", "semantic_entropy", "semantic_nearest_neighbour_entropy", "token_entropy",
]  # fmt: skip
