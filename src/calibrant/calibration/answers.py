"""Inputs of the metrics: the answers that count, flattened, and weights of prompts."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.checks import check_grouped, check_shapes
from calibrant.errors import CalibrantError
from calibrant.statistics.counted import as_labels
from calibrant.statistics.resampling import CHUNK


class Answers(NamedTuple):
    """The M answers that count, in the order of their confidence where a function says so."""

    confidence: Tensor  # [M], float64
    right: Tensor  # [M], boolean
    prompt: Tensor  # [M], the number of the prompt of each, from 0 to N - 1


def counted_answers(caller: str, correct: Tensor, where: Tensor | None, **scores: Tensor) -> tuple[Tensor, Tensor]:
    """Which answers count, and which are right: `[N, G]` boolean twice. A NaN in `correct` or a score is out."""
    check_grouped(caller, **scores, correct=correct, where=where)
    mask = ~correct.isnan() if where is None else ~correct.isnan() & where
    for score in scores.values():
        mask = mask & ~score.isnan()
    return mask, as_labels(caller, "correct", correct)


def flat_answers(caller: str, confidence: Tensor, correct: Tensor, where: Tensor | None) -> Answers:
    """The answers that count, prompt by prompt.

    >>> flat_answers("f", torch.tensor([[0.5], [torch.nan], [0.25]]), torch.tensor([[1], [0], [0]]), None).prompt
    tensor([0, 2])
    """
    mask, right = counted_answers(caller, correct, where, confidence=confidence)
    return Answers(confidence.detach()[mask].double(), right[mask], mask.nonzero()[:, 0])


def by_confidence(answers: Answers, *, descending: bool = False) -> Answers:
    """The same answers, sorted by their confidence."""
    order = answers.confidence.argsort(descending=descending)
    return Answers(*(x[order] for x in answers))


def over_weights(
    caller: str,
    prompt_weights: Tensor | None,
    source: Tensor,
    statistic: Callable[[Tensor], Tensor],
    items: int = 0,
) -> Tensor:
    """A statistic for each row of weights, a few rows at a time: memory does not grow with the number of resamples.

    `statistic` maps weights `[r, N]` in float64 to `[r, ...]`, where N is the length of `source`, and needs `items`
    numbers per row. Returns `[..., ...]` in float64 for weights `[..., N]`; without weights each prompt counts once.
    """
    num_prompts = len(source)
    if prompt_weights is None:
        return statistic(torch.ones(1, num_prompts, dtype=torch.float64, device=source.device))[0]
    check_shapes(caller, prompt_weights=(prompt_weights, "... N"))
    if prompt_weights.shape[-1] != num_prompts:
        raise CalibrantError(
            f"{caller}: prompt_weights has to be [..., N] with N = {num_prompts} prompts, "
            f"got {list(prompt_weights.shape)}"
        )
    if prompt_weights.is_floating_point() or bool((prompt_weights < 0).any()):
        raise CalibrantError(f"{caller}: prompt_weights say how often each prompt counts: integers of at least 0")
    rows = prompt_weights.to(source.device).reshape(-1, num_prompts)
    size = max(1, CHUNK // max(1, items, num_prompts))
    values = torch.cat([statistic(chunk.double()) for chunk in rows.split(size)])
    return values.reshape((*prompt_weights.shape[:-1], *values.shape[1:]))


def weighted_mean(weights: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the answers that count of prompts that count: `[r, N]` and `[N, G]` -> `[r]`; 0 over none."""
    total = weights @ torch.where(mask, values.double(), 0.0).sum(-1)
    return total / (weights @ mask.sum(-1).double()).clamp(min=1.0)
