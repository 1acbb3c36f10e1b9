"""Random heads, and their gradients by autograd."""

import torch


def make_head(shape=(2, 4, 5), width=6, vocabulary=11, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, vocabulary, shape, generator=generator)
    mask = torch.arange(shape[-1]) < torch.randint(0, shape[-1] + 1, (*shape[:-1], 1), generator=generator)
    return hidden.to(dtype), weight.to(dtype), tokens, mask


def oracle_gradients(hidden, weight, tokens, mask, temperature=1.0, bias=None):
    """Autograd's gradient of each rollout's log-likelihood with respect to the head's weight, `[N, G, V * D]`."""
    rows = []
    for h, y, m in zip(hidden.flatten(0, 1), tokens.flatten(0, 1), mask.flatten(0, 1), strict=True):
        head = weight.detach().clone().requires_grad_()
        logprobs = ((h @ head.T + (0 if bias is None else bias)) / temperature).log_softmax(-1)
        total = sum((logprobs[t, y[t]] for t in range(len(y)) if m[t]), (head * 0).sum())
        rows.append(torch.autograd.grad(total, head)[0].flatten())
    return torch.stack(rows).unflatten(0, hidden.shape[:2])


def oracle_variance(gradients, advantages):
    weighted = advantages[:, None] * gradients
    return (weighted - weighted.mean(0)).square().sum(-1).mean()
