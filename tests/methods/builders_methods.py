"""A group of four rollouts whose weights are known by hand."""

import torch
from made_up import row

from calibrant.groups import Groups


def groups_of_four():
    embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]], dtype=torch.float64)
    inputs = {"embeddings": embeddings, "clusters": torch.tensor([[0, 0, 1, 1]])}
    return Groups(row(2, 0, 0, 1), {**inputs, "head_gram": embeddings @ embeddings.mT})
