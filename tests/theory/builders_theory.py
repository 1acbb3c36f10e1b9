"""Random modes of a group, and a comparison."""

import torch
from hypothesis import strategies as st


@st.composite
def modes(draw, least=1):
    """Probabilities [K], mean gradients [K, D], embeddings [K, 3] without a zero."""
    k, d = draw(st.integers(least, 5)), draw(st.integers(1, 3))
    weights = torch.tensor(draw(st.lists(st.floats(0, 1), min_size=k, max_size=k)), dtype=torch.float64)
    weights[0] += 1e-3
    seed = draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(k, d, generator=generator, dtype=torch.float64) * 10 ** draw(st.integers(-3, 3))
    return weights / weights.sum(), means, torch.randn(k, 3, generator=generator, dtype=torch.float64)


def close(a, b, scale=None):
    scale = max(abs(float(a)), abs(float(b)), float(scale or 0), 1e-300)
    return abs(float(a) - float(b)) <= 1e-9 * scale
