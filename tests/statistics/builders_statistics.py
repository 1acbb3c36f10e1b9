"""Signals that follow a target."""

import torch


def signals_and_target(s=3, n=200, seed=0, ties=False, dtype=torch.float64):
    """Signals of falling quality and a skewed positive target."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, generator=generator, dtype=torch.float64)
    noise = torch.randn(s, n, generator=generator, dtype=torch.float64)
    x = hidden + noise * torch.arange(1, s + 1)[:, None]
    if ties:
        x = x.round()
    return x.to(dtype), hidden.exp().to(dtype)
