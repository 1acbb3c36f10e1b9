"""Decoding on a GPU by replays of one captured pass: launching its kernels from Python takes longer than they run.

The pass has fixed shapes: rows attend to all columns that there is room for, of which those without a token are masked.
It is captured where decoding begins, where own tokens have filled the room, and where rows were dropped.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from calibrant.policy.graphs import Captured
from calibrant.policy.group_attention import ROOM, GroupCache, Room, last_tokens
from calibrant.policy.head import is_sharded
from calibrant.policy.verify import ROUGH, NotShared, difference, reason_of, record_of, warn_once

REPLAYED = "generation, passes replayed"
LAUNCHES = "launches the kernels of each pass of generation one by one, its pass cannot be captured as a CUDA graph"
MOST_ROOM = 512
"""Own tokens for which room is made at a time at most; below, as many as there are."""


def replayable(model: nn.Module, cache: GroupCache) -> bool:
    """Whether passes on a cache may be captured."""
    on_gpu = all(layer.prompts[0].device.type == "cuda" for layer in cache.layers)
    return on_gpu and not is_sharded(model) and REPLAYED not in record_of(model).failed


class FixedPass(NamedTuple):
    """A captured pass, and what it reads anew in each replay."""

    captured: Captured
    given: tuple[Tensor, Tensor]  # ids and positions, `[b, 1]`
    room: Room


class ReplayedCache:
    """A cache whose passes are captured, and replayed for one token after the other."""

    dropped = 0.5
    """Share of finished rows from which on they are dropped, which takes another capture."""

    def __init__(self, cache: GroupCache) -> None:
        self.cache = cache
        self._fixed: FixedPass | None = None

    @property
    def rows(self) -> Tensor:
        """Rows of the batch `[b]` that are held."""
        return self.cache.rows

    def keep(self, kept: Tensor) -> None:
        """Drops the rows but those at the positions `kept`, ascending."""
        self._release()
        self.cache.keep(kept)

    def next_logits(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """`[b, V]` after the last token of each row of ids and mask `[b, P + t]`; where attention is named NAME."""
        layers = self.cache.layers
        if not layers[0].length or REPLAYED in record_of(model).failed:
            return self.cache.next_logits(model, ids, mask)
        given, columns = last_tokens(ids, mask), layers[0].own[0].shape[2]
        if self._fixed is None or layers[0].length == columns:
            logits = self._first(model, given)
        else:
            logits = _next(self._fixed, given)
        for layer in layers:
            layer.length += 1
        return logits

    def _first(self, model: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        """Runs a pass with fixed shapes and captures it for those that follow, or says once why it cannot."""
        self._release()
        length, record = self.cache.layers[0].length, record_of(model)
        room = self.cache.fix(length + min(max(ROOM, length), MOST_ROOM))
        ids, positions = (x.clone() for x in given)
        logits = self.cache.logits(model, ids, positions)
        try:
            captured = Captured(lambda: self.cache.logits(model, ids, positions), logits.device)
            if REPLAYED not in record.verified:
                _assert_same(captured.replay(), logits)
                record.verified.add(REPLAYED)
            self._fixed = FixedPass(captured, (ids, positions), room)
        except Exception as error:  # of any model
            record.failed[REPLAYED] = reason_of(error)
            warn_once(model, record.failed[REPLAYED], LAUNCHES)
            self.cache.loosen()
        return logits

    def _release(self) -> None:
        """Gives the captured pass back, with its memory."""
        self._fixed = None
        self.cache.loosen()


def _next(fixed: FixedPass, given: tuple[Tensor, Tensor]) -> Tensor:
    """Replays a captured pass for one more token of each row."""
    fixed.room.advance()
    for read, new in zip(fixed.given, given, strict=True):
        read.copy_(new)
    logits = fixed.captured.replay()
    fixed.captured.pass_notes()
    return logits


@torch.no_grad()
def _assert_same(replayed: Tensor, logits: Tensor) -> None:
    """Raises NotShared unless a replayed pass gives what it gave when it was run."""
    error = difference(replayed, logits).mean
    if not error <= ROUGH:
        raise NotShared(f"a replay differs from the pass that was captured (relative error {error:.1e})")
