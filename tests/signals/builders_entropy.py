"""Random groups, and graphs of entailment."""

import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
IDS = torch.tensor([[0, 0, 1, 2]])
LOG_MASS = torch.tensor([[-0.1, -0.2, -0.4, -0.8]], dtype=torch.float64)


def random_groups(n=12, g=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.randint(-2, 3, (n, g), generator=generator)
    log_mass = -2 * torch.rand(n, g, generator=generator, dtype=torch.float64)
    where = torch.rand(n, g, generator=generator) > 0.3
    entailment = torch.softmax(2 * torch.randn(n, g, g, 3, generator=generator, dtype=torch.float64), -1)
    similarity = torch.rand(n, g, g, generator=generator, dtype=torch.float64)
    similarity.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return clusters, log_mass.to(dtype), where, entailment.to(dtype), similarity.to(dtype)


def graph(n, edges):
    """Scores of a graph from its weights `{(i, j): w}`: half the weight in each direction."""
    scores = torch.zeros(1, n, n, dtype=torch.float64)
    for (i, j), weight in edges.items():
        scores[0, i, j] = scores[0, j, i] = weight / 2
    return scores


def complete(n, weight):
    return torch.full((1, n, n), weight / 2, dtype=torch.float64)
