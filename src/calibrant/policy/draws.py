"""Tokens drawn from probabilities, with the random numbers and results of `torch.multinomial`."""

from functools import cache

import torch
from torch import Tensor

from calibrant.errors import CalibrantError

CHUNK = 2**19
"""Probabilities for which random numbers are held at a time, in float64."""


def sampled(scores: Tensor) -> Tensor:
    """One token per row, `[B]`, of scores `[B, V]`; a CalibrantError if they are not finite."""
    probabilities = scores.softmax(-1)
    if probabilities[:, 0].isnan().any():  # a row is NaN as a whole
        raise CalibrantError(
            "the model's logits are not finite, so nothing can be sampled: its weights are damaged, or training has "
            "diverged; take an earlier checkpoint, or a lower learning rate"
        )
    plain = probabilities.device.type != "cpu" or probabilities.dtype != torch.float32 or not _same_as_multinomial()
    return torch.multinomial(probabilities, 1)[:, 0] if plain else draw(probabilities)


def draw(probabilities: Tensor) -> Tensor:
    """`argmax p / q` of each row of `[B, V]`, with `q = -log(1 - u)` and u uniform, drawn in order.

    `torch.multinomial` does the same on a CPU in float32, but computes its logarithms one by one: with a vocabulary of
    49,152, 2.7 times the processor time.
    """
    tokens = []
    for rows in probabilities.split(max(1, CHUNK // probabilities.shape[1])):
        uniform = torch.rand(rows.shape, dtype=torch.float64)
        tokens.append((rows / uniform.neg_().log1p_().neg_().float()).argmax(-1))
    return torch.cat(tokens)


@cache
def _same_as_multinomial() -> bool:
    """Whether `draw` gives the tokens of `torch.multinomial` and leaves the generator as it does; torch may change."""
    with torch.random.fork_rng(devices=[]):
        probabilities = torch.rand(64, 999, generator=torch.Generator().manual_seed(0)).softmax(-1)
        results = []
        for way in (lambda p: torch.multinomial(p, 1)[:, 0], draw):
            torch.manual_seed(0)
            results.append((way(probabilities), torch.get_rng_state()))
    (tokens, state), (others, other) = results
    return torch.equal(tokens, others) and torch.equal(state, other)
