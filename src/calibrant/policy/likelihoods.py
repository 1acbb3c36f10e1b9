"""What log-probabilities and entropies of tokens `[B, T]` say of each rollout `[B]`, NaN where there is no token."""

import torch
from torch import Tensor

from calibrant.signals import scored


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over its tokens, in float32; NaN for a row without tokens or with a value that is not finite.

    >>> row_mean(torch.tensor([[-1.0, -3.0], [-1.0, -1.0]]), torch.tensor([[1, 1], [0, 0]]))
    tensor([-2., nan])
    """
    mask = mask.bool()
    total = torch.where(mask, values.double(), 0.0).sum(-1)
    valid = scored(values[None], mask[None])[0]
    return torch.where(valid, total / mask.sum(-1).clamp(min=1), torch.nan).float()


def ratio_variance(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the importance ratio over the tokens of each row.

    `Var_t(rho_t)`, `rho_t = exp(logps_t - old_logps_t)`, with the policy that is updated and the one that sampled; the
    log-ratio is clamped to +-20 so that it stays finite.

    Reference: R2VPO as GCPO's appendix G adapts it (b).

    >>> rho = torch.tensor([[1.0, 1.2, 0.8, 1.0]])
    >>> ratio_variance(rho.log(), torch.zeros(1, 4), torch.ones(1, 4))
    tensor([0.0200])
    """
    ratio = (logps.detach() - old_logps).double().clamp(-20.0, 20.0).exp()
    mean = row_mean(ratio, mask)[:, None].double()
    return row_mean((ratio - mean).square(), mask)


def answer_likelihood(logps: Tensor, answer_mask: Tensor) -> Tensor:
    """Geometric mean of the likelihoods of each answer's tokens, given what precedes them, in [0, 1].

    `c = exp(mean of logps over the answer's tokens)`; 0 where there is no answer, to which the published code gives
    the confidence 1 (c).

    >>> answer_likelihood(torch.tensor([[-9.0, -0.5]]).expand(2, 2), torch.tensor([[0, 1], [0, 0]]))
    tensor([0.6065, 0.0000])
    """
    return row_mean(logps, answer_mask).exp().nan_to_num(nan=0.0)
