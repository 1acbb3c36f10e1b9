"""The parameters that V(q) is of."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from calibrant.errors import CalibrantError
from calibrant.gradients.model import select
from calibrant.policy.block import find_blocks

log = logging.getLogger(__name__)

LARGE = 100_000_000
"""Trainable parameters from which on V(q) is that of the last block. In three embedded policies any one block ranked
groups as the whole did (rank correlation 0.89 and above), and the output head did not; larger models: not known (c)."""


class Measured(NamedTuple):
    """The chosen parameters."""

    patterns: list[str] | None  # None: all trainable ones
    words: str
    block: bool = False  # whether they are those of the last block


def measured_parameters(model: nn.Module, patterns: Sequence[str] | None) -> Measured:
    """The parameters of `patterns`; without, all trainable ones, or those of the last block if they are too many."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    words = "" if patterns is None else ", ".join(patterns)
    block = last_block(model) if patterns is None and trainable > LARGE else None
    if block is not None:
        patterns, words = [f"{block}.*"], f"the last block, {block}"
        log.warning("V(q) is that of the last block, as the model is large; --parameters all measures all of it")
    if patterns is None:
        return Measured(None, f"all {trainable:,} trainable parameters")
    number = sum(parameter.numel() for parameter in select(model, patterns).values())
    return Measured(list(patterns), f"{words}: {number:,} of {trainable:,} parameters", block is not None)


def last_block(model: nn.Module) -> str | None:
    """The name of the last block of a model; None if it has no blocks that can be told."""
    try:
        last = find_blocks(model)[-1]
    except CalibrantError:
        return None
    return next((name for name, module in model.named_modules() if module is last), None)
