"""Drawing tokens with random numbers of each row's own, with log-probabilities and entropies on the way.

`generate` draws a token of every row from one random generator, so that a row depends on the rows beside it. Here
row b draws its t-th token with the uniform number `u[b, t]`: the first token whose cumulative probability exceeds it.
What a row says then depends on nothing but its prompt, its numbers and the rounding of its logits.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from calibrant.errors import CalibrantError
from calibrant.policy.logits import ROOM

GREEDY = -1  # the sample number of a row that is decoded greedily
NOTHING = -1  # in place of a token where none is drawn


def uniform_numbers(seed: int, rows: Sequence[tuple[int, int]], length: int) -> Tensor:
    """Random numbers in [0, 1) of rows (prompt, sample), `[B, length]` float64; NaN in greedy rows.

    Those of a row depend on the seed, its prompt and its sample, and not on `length` or the other rows.

    >>> bool((uniform_numbers(0, [(0, 0), (7, 3)], 4)[1:, :2] == uniform_numbers(0, [(7, 3)], 2)).all())
    True
    """
    numbers = np.full((len(rows), length), np.nan)
    for values, (prompt, sample) in zip(numbers, rows, strict=True):
        if sample != GREEDY:
            values[:] = np.random.default_rng([seed, prompt, sample]).random(length)
    return torch.from_numpy(numbers)


class Sampler(LogitsProcessor):
    """Draws the tokens of a batch.

    `generate` takes them by greedy search, as the logit of a drawn token becomes infinite; `decode` asks for tokens.
    Rows `b` with numbers `u[b]` are samples of `softmax(logits / temperature)`, those with NaN are greedy. After
    `generate`, `logps` and `entropies` `[B, T]` hold the log-probability of each drawn token, and the entropy of the
    distribution that it was drawn from, in nats; 0 in greedy rows and after the end of a row.
    """

    def __init__(
        self,
        numbers: Tensor,
        temperature: float,
        ends: Iterable[int],
        advance: Callable[[int], object] = lambda tokens: None,
    ):
        """`ends` are the tokens that end a row; `advance` is called with the number of tokens drawn in each step."""
        self.numbers, self.temperature, self.advance = numbers, temperature, advance
        self.ends = torch.tensor(sorted(ends), device=numbers.device)
        self.logps, self.entropies = (torch.zeros_like(numbers, dtype=torch.float32) for _ in range(2))
        self.greedy = numbers[:, 0].isnan()
        self.prompt = 0  # columns of the prompt
        self.open = self.greedy[:0]  # the rows that have not ended

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores `[B, V]`, changed in place: infinite for the drawn token of each row that has not ended."""
        tokens = self.next_tokens(input_ids, torch.arange(len(scores), device=scores.device), scores)
        rows = (tokens != NOTHING).nonzero()[:, 0]
        scores[rows, tokens[rows]] = torch.inf
        return scores

    def next_tokens(self, input_ids: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """The tokens `[B]` that follow `[B, L]`; `NOTHING` in rows that have ended.

        `logits [b, V]` are of the rows `[b]`, among which are all that have not ended.
        """
        if not len(self.open) or input_ids.shape[1] <= self.prompt:  # the first token, also of another attempt
            self.prompt, self.open = input_ids.shape[1], torch.ones_like(self.greedy)
        tokens, step = torch.full_like(input_ids[:, 0], NOTHING), input_ids.shape[1] - self.prompt
        size = max(1, ROOM["cpu" if logits.device.type == "cpu" else "other"] // logits.shape[1])
        for greedy in (True, False):
            places = (self.open & (self.greedy == greedy))[rows].nonzero()[:, 0]
            for some in places.split(size):
                values = logits[some]
                tokens[rows[some]] = _likeliest(values) if greedy else self._drawn(rows[some], values, step)
        self.advance(int(self.open.sum()))
        self.open &= ~torch.isin(tokens, self.ends)
        return tokens

    def _drawn(self, rows: Tensor, logits: Tensor, step: int) -> Tensor:
        """Draws a token for each of some rows, and notes log-probabilities and entropies."""
        logs = (logits.float() / self.temperature).log_softmax(-1)
        probabilities = logs.exp()
        edges = probabilities.cumsum(-1)
        total = edges[:, -1:]
        _check_finite(total)
        at = (self.numbers[rows, step, None] * total).to(total)
        at = torch.minimum(at, total.nextafter(torch.zeros_like(total)))  # rounding may have reached the total
        tokens = torch.searchsorted(edges, at, right=True)
        self.logps[rows, step] = logs.gather(-1, tokens)[:, 0]
        lowest = torch.finfo(logs.dtype).min
        self.entropies[rows, step] = -torch.linalg.vecdot(probabilities, logs.clamp_(min=lowest))
        return tokens[:, 0]


def _likeliest(logits: Tensor) -> Tensor:
    values, tokens = logits.max(-1)
    _check_finite(values)
    return tokens


def _check_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise CalibrantError(
            "the model's logits are not finite, so nothing can be sampled: its weights are damaged, or training "
            "has diverged; take an earlier checkpoint, or a lower learning rate"
        )
