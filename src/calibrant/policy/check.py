"""Checks for a given model that shared prompts give the numbers and gradients of the plain path."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.errors import CalibrantError
from calibrant.policy.head import text_config
from calibrant.policy.logps import LogprobRequest, logps_of_whole_logits, shared_prefix_logps
from calibrant.policy.prefill import GROUPED, REPEATED, logits_both_ways, sampling_to_share
from calibrant.policy.prompts import Tokens
from calibrant.policy.routes import ROUTES, Route
from calibrant.policy.verify import VectorDifference, difference, evaluating, reason_of

NEW_TOKENS = 4
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
    """One row of a check: a route, or generation."""

    route: str  # "cached", "packed" or "generation"
    logp_error: float  # largest difference of a log-probability from the plain path, nats
    gradient_error: float  # relative; NaN for generation
    equal: bool  # whether both errors are within tolerance
    obstacle: str | None  # why the model cannot take the route


class PrefixCheck(NamedTuple):
    """The result of `check_prefix`.

    A model with an obstacle in every row shares no prompts: calibrant takes the plain path for it.
    """

    equal: bool  # whether something is possible, and all that is possible is equal
    tolerances: tuple[float, float]  # of log-probabilities, in nats, and of gradients, relative
    dtype: torch.dtype  # of the parameters, the least precise of them, which decides the tolerances
    routes: tuple[RouteCheck, ...]  # each route, then generation


def check_prefix(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, *, seed: int = 0, temperature: float = 1.0
) -> PrefixCheck:
    """Compares shared prompts with the plain path on a small random batch: each route, and generation.

    The batch has prompts of different lengths with different numbers of rows in mixed order, ragged completions and an
    empty one; its prompts are longer than an attention window of up to 256 tokens. It contains no special tokens of
    the tokenizer. The model is checked in evaluation mode (no dropout, no gradient checkpointing), restored on exit.

    Of a route: `max |logp - plain|` over tokens, and `|g - g_plain| / |g_plain|` for the gradients g of
    `sum_t w_t logp_t` with random w, all parameters in one vector. Of generation: `max |logp - plain|` over tokens that
    `generate` samples after the prompts.

    Returns:
        Errors and verdict of each row; the check passes if something is possible and all that is possible is equal.
        Tolerances are `TOLERANCES` (c).

    Raises:
        CalibrantError: no parameter requires a gradient.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise CalibrantError("check_prefix: no parameter of the model requires a gradient; unfreeze what is trained")
    dtypes = {weight.dtype for weight in model.parameters() if weight.dtype in TOLERANCES}
    dtype = max(dtypes, key=TOLERANCES.__getitem__)  # an adapter may be wider than its base
    tolerances, batch = TOLERANCES[dtype], _random_batch(model, tokenizer, seed)
    ways: dict[str, Callable[[], VectorDifference]] = {
        name: partial(_route, model, batch, weights, cast(Route, name), temperature) for name in ROUTES
    }
    ways["generation"] = partial(_generation, model, batch, temperature)
    with evaluating(model), torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = tuple(_row(name, way, tolerances) for name, way in ways.items())
    tried = [row.equal for row in rows if row.obstacle is None]
    return PrefixCheck(bool(tried) and all(tried), tolerances, dtype, rows)


def _row(name: str, way: Callable[[], VectorDifference], tolerances: tuple[float, float]) -> RouteCheck:
    try:
        result = way()
    except Exception as error:  # models may raise any type
        return RouteCheck(name, torch.nan, torch.nan, False, reason_of(error))
    equal = result.largest <= tolerances[0] and (name not in ROUTES or result.gradient <= tolerances[1])
    return RouteCheck(name, result.largest, result.gradient, equal, None)


def _route(
    model: nn.Module, batch: Tokens, weights: Sequence[Tensor], route: Route, temperature: float
) -> VectorDifference:
    where = batch.completion_mask != 0
    shared = shared_prefix_logps(model, *batch, temperature=temperature, route=route)
    plain = logps_of_whole_logits(model, batch, LogprobRequest(temperature, False, False))
    return difference(shared.logps[where][:, None], plain.logps[where][:, None], weights)


def _generation(model: PreTrainedModel, batch: Tokens, temperature: float) -> VectorDifference:
    options = {"input_ids": batch.prompt_ids, "attention_mask": batch.prompt_mask, "max_new_tokens": NEW_TOKENS}
    options |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "num_beams": 1}
    config = sampling_to_share(model, options)
    both = partial(logits_both_ways, model, model.generate, *batch[:2], config, NEW_TOKENS)
    try:
        shared, plain, tokens = both(GROUPED)
    except Exception:  # models may raise any type
        shared, plain, tokens = both(REPEATED)
    logps = [(x / temperature).log_softmax(-1).gather(-1, tokens[:, None]) for x in (shared, plain)]
    return difference(logps[0], logps[1])


def _random_batch(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, seed: int) -> Tokens:
    """Seven rows of three prompts."""
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
    batch = Tokens((prompts * prompt_mask)[rows], prompt_mask[rows], completions * completion_mask, completion_mask)
    return Tokens(*(tensor.to(next(model.parameters()).device) for tensor in batch))
