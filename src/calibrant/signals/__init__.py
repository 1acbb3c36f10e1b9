"""Signals: what a group of answers says of itself, as pure functions on tensors `[N, G, ...]` -> `[N]`.

An uncertainty grows with doubt, a confidence with certainty.
"""

from calibrant.signals.dispersion import barycentric_transport, cosine_dispersion, reward_dispersion

__all__ = ["barycentric_transport", "cosine_dispersion", "reward_dispersion"]
