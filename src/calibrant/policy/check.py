"""Checks, for a model of one's own, that shared prompts give the numbers and gradients of the plain forward."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibrant.errors import CalibrantError
from calibrant.policy.head import text_config
from calibrant.policy.known import reason_of
from calibrant.policy.logps import logps_of_whole_logits, shared_prefix_logps
from calibrant.policy.modes import evaluating
from calibrant.policy.prompts import Batch
from calibrant.policy.routes import Route

SHARED: tuple[Route, ...] = ("cached", "packed")

TOLERANCES = {
    torch.float64: (1e-6, 1e-6),
    torch.float32: (1e-4, 1e-4),
    torch.float16: (5e-2, 2e-2),
    torch.bfloat16: (2.5e-1, 5e-2),
}
"""Largest errors of a log-probability in nats and of the gradient relative to its length, by type of the parameters.

Those of float64 are wide because most models compute norms and softmax in float32 whatever their type.
"""


class RouteCheck(NamedTuple):
    """Errors of one route, or why the model cannot take it; `equal` says whether the errors are within tolerance."""

    route: str
    logp_error: float
    gradient_error: float
    equal: bool
    obstacle: str | None


class PrefixCheck(NamedTuple):
    """What a check found: the verdict, the tolerances of both errors and the type they are for, and each route.

    A model with an obstacle on every route shares no prompts: calibrant takes the plain path for it.
    """

    equal: bool
    tolerances: tuple[float, float]
    dtype: torch.dtype
    routes: tuple[RouteCheck, ...]


def check_prefix(model: nn.Module, tokenizer: Any = None, *, seed: int = 0, temperature: float = 1.0) -> PrefixCheck:
    """Compares every route with the model's whole logits on a small random batch: log-probabilities and full gradients.

    The batch has prompts of different lengths with different numbers of rows in mixed order, ragged completions and an
    empty one; its prompts are longer than a sliding window of up to 256 tokens. The model is checked in evaluation mode
    (no dropout, no gradient checkpointing) and left as it was, gradients included.

    Errors: `max |logp - plain|` over tokens, and `|g - g_plain| / |g_plain|` for the gradients g of
    `sum_t w_t logp_t` with random w, all parameters in one vector.

    Args:
        model: a causal language model of transformers.
        tokenizer: of the model; its special tokens stay out of the batch.
        seed: of the batch.
        temperature: that the logits are divided by.

    Returns:
        Errors and verdict of each route; the check as a whole passes if a route is open and all that are open pass.
        Tolerances are `TOLERANCES` (c).

    Raises:
        CalibrantError: no parameter requires a gradient.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise CalibrantError("check_prefix: no parameter of the model requires a gradient; unfreeze what is trained")
    dtype = weights[0].dtype
    batch, factors = _random_batch(model, tokenizer, seed)
    with evaluating(model), torch.enable_grad():
        plain = _gradient(logps_of_whole_logits(model, *batch, temperature=temperature), factors, weights)
        routes = tuple(_check_route(model, batch, factors, weights, plain, name, temperature) for name in SHARED)
    tried = [route.equal for route in routes if route.obstacle is None]
    return PrefixCheck(bool(tried) and all(tried), TOLERANCES[dtype], dtype, routes)


def _check_route(
    model: nn.Module,
    batch: Batch,
    factors: Tensor,
    weights: Sequence[Tensor],
    plain: tuple[Tensor, Tensor],
    route: Route,
    temperature: float,
) -> RouteCheck:
    try:
        result = shared_prefix_logps(model, *batch, temperature=temperature, route=route)
        logps, gradient = _gradient(result.logps, factors, weights)
    except Exception as error:  # whatever a model of somebody else's raises
        return RouteCheck(route, torch.nan, torch.nan, False, reason_of(error))
    logp_error = float((logps - plain[0]).abs().max())
    gradient_error = float((gradient - plain[1]).norm() / plain[1].norm().clamp(min=1e-30))
    logp_tolerance, gradient_tolerance = TOLERANCES[weights[0].dtype]
    equal = logp_error <= logp_tolerance and gradient_error <= gradient_tolerance
    return RouteCheck(route, logp_error, gradient_error, equal, None)


def _gradient(logps: Tensor, factors: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and the gradient of their weighted sum as one vector."""
    loss = (logps * factors.to(logps)).sum()
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True)
    return logps.detach(), torch.cat([gradient.flatten().to(logps) for gradient in gradients])


def _random_batch(model: nn.Module, tokenizer: Any, seed: int) -> tuple[Batch, Tensor]:
    """Seven rows of three prompts, and a random factor for each completion token."""
    generator = torch.Generator().manual_seed(seed)
    config, completion = text_config(model), 9
    window = getattr(config, "sliding_window", None) or 0
    longest = window + 8 if 0 < window <= 256 else 24
    longest = max(4, min(longest, getattr(config, "max_position_embeddings", longest + completion) - completion))
    special = set(tokenizer.all_special_ids) if tokenizer is not None else set()
    usable = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    prompts = usable[torch.randint(len(usable), (3, longest), generator=generator)]
    lengths = torch.tensor([longest, longest // 2, 3])
    rows = torch.tensor([0, 1, 0, 2, 1, 0, 0])
    ends = torch.tensor([completion, 1, 4, completion, 0, 2, 6])
    prompt_mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
    completion_mask = (torch.arange(completion) < ends[:, None]).long()
    completions = usable[torch.randint(len(usable), (len(rows), completion), generator=generator)]
    batch = Batch((prompts * prompt_mask)[rows], prompt_mask[rows], completions * completion_mask, completion_mask)
    factors = torch.randn(len(rows), completion, generator=generator, dtype=torch.float64)
    device = next(model.parameters()).device
    return Batch(*(tensor.to(device) for tensor in batch)), factors.to(device)
