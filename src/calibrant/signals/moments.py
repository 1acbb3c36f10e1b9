"""Variances of weighted gradients from their inner products `K_ij = <g_i, g_j>`.

With `a_i = w_i g_i` and n rollouts that count, `V = 1/n sum_i |a_i - mean a|^2 = 1/n sum_i |a_i|^2 - |mean a|^2`. All
inner products are float64 and 0 in the rows and columns of rollouts that do not count (`kept`).
"""

import torch
from torch import Tensor


def kept(gram: Tensor, where: Tensor) -> Tensor:
    """Inner products `[..., G, G]` with 0 for rollouts that do not count."""
    return torch.where(where[..., :, None] & where[..., None, :], gram, 0.0)


def weighted(gram: Tensor, weights: Tensor) -> Tensor:
    """Inner products of `w_i g_i` for weights `[..., G]`."""
    return weights[..., :, None] * gram * weights[..., None, :]


def squared_norms(gram: Tensor) -> Tensor:
    """`|g_i|^2`, `[..., G]`."""
    return gram.diagonal(dim1=-2, dim2=-1)


def count(where: Tensor) -> Tensor:
    """How many rollouts count, `[...]`; 1 if none does, so that means over none are 0."""
    return where.sum(-1).clamp(min=1)


def variance(squares: Tensor, square_of_sum: Tensor, n: Tensor) -> Tensor:
    """`V` from `|a_i|^2 [..., G]` and `|sum_i a_i|^2 [...]`; at least 0, and exactly 0 for one rollout."""
    return torch.where(n > 1, squares.sum(-1) / n - square_of_sum / n**2, 0.0).clamp(min=0.0)


def gram_variance(gram: Tensor, n: Tensor) -> Tensor:
    """`V` from inner products of the `a_i`."""
    return variance(squared_norms(gram), gram.sum((-2, -1)), n)


def between_clusters(gram: Tensor, clusters: Tensor, where: Tensor) -> Tensor:
    """`sum_k n_k/n |mu_k - mean a|^2`, where `mu_k` is the mean of `a_i` over the rollouts of cluster k."""
    same = (clusters[..., :, None] == clusters[..., None, :]) & where[..., :, None] & where[..., None, :]
    means = gram * same / same.sum(-1, keepdim=True).clamp(min=1)
    n = count(where)
    return (means.sum((-2, -1)) / n - gram.sum((-2, -1)) / n**2).clamp(min=0.0)
