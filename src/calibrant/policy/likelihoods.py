"""What per-token log-probabilities and entropies say of each rollout: rows `[B, T]` -> `[B]`, NaN where nothing."""

import torch
from torch import Tensor

from calibrant.signals import scored


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over its tokens, NaN for a row without tokens or with a value that is not finite.

    Args:
        values: `[B, T]`, e.g. log-probabilities or entropies of tokens.
        mask: `[B, T]`, 0 and 1.

    Returns:
        `[B]`, float32.

    >>> row_mean(torch.tensor([[-1.0, -3.0], [-1.0, -1.0]]), torch.tensor([[1, 1], [0, 0]]))
    tensor([-2., nan])
    """
    mask = mask.bool()
    total = torch.where(mask, values.double(), 0.0).sum(-1)
    found = scored(values[None], mask[None])[0]
    return torch.where(found, total / mask.sum(-1).clamp(min=1), torch.nan).float()


def ratio_variance(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the importance ratio over the tokens of each row.

    `Var_t(rho_t)`, `rho_t = exp(logps_t - old_logps_t)`; the log-ratio is clamped to +-20 so that it stays finite.

    Args:
        logps: `[B, T]`, under the policy that is updated.
        old_logps: `[B, T]`, under the policy that sampled.
        mask: `[B, T]`, 0 and 1.

    Returns:
        `[B]`, at least 0, NaN for a row without tokens.

    Reference: R2VPO as GCPO's appendix G adapts it (b).

    >>> rho = torch.tensor([[1.0, 1.2, 0.8, 1.0]])
    >>> ratio_variance(rho.log(), torch.zeros(1, 4), torch.ones(1, 4))
    tensor([0.0200])
    """
    ratio = (logps.detach() - old_logps).double().clamp(-20.0, 20.0).exp()
    mean = row_mean(ratio, mask)[:, None].double()
    return row_mean((ratio - mean).square(), mask)


def answer_likelihood(logps: Tensor, answer_mask: Tensor) -> Tensor:
    """Geometric mean of the likelihoods of each answer's tokens, given what precedes them.

    `c = exp(mean of logps over the answer's tokens)`; 0 where there is no answer, to which the published code gives
    the confidence 1 (c).

    Args:
        logps: `[B, T]`.
        answer_mask: `[B, T]`, which tokens are the answer.

    Returns:
        `[B]` in [0, 1].

    >>> answer_likelihood(torch.tensor([[-9.0, -0.5]]).expand(2, 2), torch.tensor([[0, 1], [0, 0]]))
    tensor([0.6065, 0.0000])
    """
    return row_mean(logps, answer_mask).exp().nan_to_num(nan=0.0)
