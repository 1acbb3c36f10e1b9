"""Decoding with the keys and values of each prompt held once for all of its rows, instead of once per row.

A row's query attends to the keys of its prompt and to those of its own tokens, with one softmax over both:

    w = softmax(scaling [q K_prompt^T, q K_own^T]),   output = w_prompt V_prompt + w_own V_own

The queries of all rows of a prompt are multiplied with its keys in one matrix product. Exact up to the order of sums.

Letters: N prompts, B rows, G rows per prompt at most, K heads of keys and values with R query heads each, D their
width, P columns of prompts (those of sliding attention hold the last ones alone), t tokens that a row has of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from calibrant.policy.attention import check_inputs, in_computed_type, scaled
from calibrant.policy.verify import NotShared

NAME = "calibrant_group"
ROOM = 64
"""Own tokens for which room is made at a time."""


class Room:
    """Of passes with fixed shapes, which attend to all columns of prompts and own tokens, filled or not.

    Attributes:
        place: `[1]`, the column that the next own token is written to.
        biases: of the scores, `[P + room]` by window: -inf where no token is, or none that its query sees.
    """

    def __init__(self, room: int, length: int, columns: Mapping[int | None, int], device: torch.device) -> None:
        """For t = `length` own tokens so far; `columns`: P by window."""
        self._length, self._columns = length, columns
        self.place = torch.tensor([length], device=device)
        self.biases = {window: torch.zeros(count + room, device=device) for window, count in columns.items()}
        for window, count in columns.items():
            self.biases[window][count + length + 1 :] = -torch.inf
            self.biases[window][: max(0, count + length + 1 - window) if window else 0] = -torch.inf

    def advance(self) -> None:
        """Goes on to the next column."""
        self._length += 1
        self.place.add_(1)
        for window, count in self._columns.items():
            last = count + self._length
            self.biases[window][last] = 0.0
            if window and last >= window:
                self.biases[window][last - window] = -torch.inf


@dataclass
class GroupLayer:
    """Keys and values of prompts `[N, K, P, D]` and of own tokens `[B, K, room, D]`, of which the first t are filled.

    `window`: columns that a query of sliding attention sees, its own included.
    """

    prompts: list[Tensor]
    window: int | None
    own: list[Tensor] = field(default_factory=list)
    length: int = 0  # t
    room: Room | None = None

    def append(self, token: tuple[Tensor, Tensor]) -> None:
        """Adds keys and values `[B, K, 1, D]` of one token per row; with fixed shapes t is not counted."""
        if self.room is not None:
            for buffer, new in zip(self.own, token, strict=True):
                buffer.index_copy_(2, self.room.place, new)
            return
        if not self.own:
            self.prompts = [x.to(new.dtype) for x, new in zip(self.prompts, token, strict=True)]
            self.own = [new[:, :, :0] for new in token]
        if self.length == self.own[0].shape[2]:
            self.own = [torch.cat([x, x.new_empty(*x.shape[:2], ROOM, x.shape[3])], dim=2) for x in self.own]
        for buffer, new in zip(self.own, token, strict=True):
            buffer[:, :, self.length] = new[:, :, 0]
        self.length += 1

    def visible(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of prompts and of own tokens that the query of the last own token sees, with `room` all."""
        if self.room is not None:
            return self.prompts, self.own
        hidden = max(0, self.length - self.window) if self.window else 0
        own = [x[:, :, hidden : self.length] for x in self.own]
        columns = self.prompts[0].shape[2]
        hidden = max(0, min(columns, columns + self.length - self.window)) if self.window else 0
        return [x[:, :, hidden:] for x in self.prompts] if hidden else self.prompts, own


class GroupCache:
    """Keys and values of N prompts, each held once, and of the tokens of B rows that continue them.

    Args:
        layers: with keys and values of the prompts alone.
        mask: `[N, P]`; 0 for padding.
        which: `[B]`, the prompt of each row.
    """

    dropped = 0.125
    """Share of finished rows from which on they are dropped: copying the cache costs about as much as one step."""

    def __init__(self, layers: list[GroupLayer], mask: Tensor, which: Tensor) -> None:
        self.layers = layers
        self.rows = which.argsort(stable=True)
        """Rows of the batch `[b]` that are held; those of one prompt are neighbours."""
        self._mask, self._which = mask, which[self.rows]
        self._arrange()

    def _arrange(self) -> None:
        """Places rows in slots `[N G]`, G for each prompt; `_slots` is None where all of them are taken."""
        prompts, which, counts = self._which.unique(return_inverse=True, return_counts=True)
        if len(prompts) < len(self._mask):
            self._mask = self._mask[prompts]
            for layer in self.layers:
                layer.prompts = [x[prompts] for x in layer.prompts]
        self._which, self._size = which, int(counts.max())
        place = torch.arange(len(which), device=which.device) - (counts.cumsum(0) - counts)[which]
        self._slots = None if bool((counts == self._size).all()) else which * self._size + place
        padding = self._mask == 0
        bias = torch.zeros(padding.shape, device=padding.device).masked_fill(padding, -torch.inf)
        self._padding = bias[:, None, None] if bool(padding.any()) else None

    def keep(self, kept: Tensor) -> None:
        """Drops the rows but those at the positions `kept`, ascending, and prompts that no row continues."""
        self.rows, self._which = self.rows[kept], self._which[kept]
        for layer in self.layers:
            layer.own = [x[kept] for x in layer.own]
        self._arrange()

    def fix(self, columns: int) -> Room:
        """Has passes have fixed shapes from here on, with so many columns of own tokens, until `loosen` is called."""
        length, own = self.layers[0].length, self.layers[0].own[0]
        prompts = {layer.window: layer.prompts[0].shape[2] for layer in self.layers}
        room = Room(columns, length, prompts, own.device)
        for layer in self.layers:
            layer.room, filled = room, [x[:, :, :length] for x in layer.own]
            layer.own = [torch.cat([x, x.new_zeros(*x.shape[:2], columns - length, x.shape[3])], 2) for x in filled]
        return room

    def loosen(self) -> None:
        """Lets shapes grow with the number of tokens again."""
        for layer in self.layers:
            layer.room = None

    def next_logits(self, model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        """`[b, V]` after the last token of each row of ids and mask `[b, P + t]`; where attention is named NAME."""
        logits = self.logits(model, *last_tokens(ids, mask))
        if len({layer.length for layer in self.layers}) > 1 or not self.layers[0].length:
            raise NotShared("not all of its layers attend by the functions that transformers registers")
        return logits

    def logits(self, model: nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
        """`[b, V]` after one more token of each row, `[b, 1]`."""
        output = model(input_ids=ids, position_ids=positions, use_cache=False, group_cache=self, logits_to_keep=1)
        logits: Tensor = output.logits[:, -1]
        return logits

    def attend(
        self, layer: GroupLayer, query: Tensor, scaling: float | None, softcap: float | None, dropout: float
    ) -> Tensor:
        """`[B, H, D]` of queries `[B, H, 1, D]` at the last own token."""
        (keys, values), (own_keys, own_values) = layer.visible()
        query = query.reshape(len(query), keys.shape[1], -1, query.shape[3])
        heads, columns = query.shape[2], keys.shape[2]
        products = self._by_prompt(query) @ keys.mT, self._by_prompt(query @ own_keys.mT)
        shape = (*products[0].shape[:-1], columns + own_keys.shape[2])
        scores = query.new_empty(shape, dtype=torch.promote_types(query.dtype, torch.float32))
        scores[..., :columns], scores[..., columns:] = products
        scores = scaled(scores, scaling, query.shape[3], softcap)
        if self._padding is not None and columns:
            scores[..., :columns] += self._padding[..., -columns:]
        if layer.room is not None:
            scores += layer.room.biases[layer.window]
        weights = nn.functional.dropout(scores.softmax(-1), dropout)
        output = self._by_row(weights[..., :columns].to(values.dtype) @ values, heads)
        output += self._by_row(weights[..., columns:].to(values.dtype), heads) @ own_values
        return output.flatten(1, 2)

    def _by_prompt(self, x: Tensor) -> Tensor:
        """`[B, K, R, C]` as `[N, K, G R, C]`."""
        if self._slots is not None:
            x = x.new_zeros(len(self._mask) * self._size, *x.shape[1:]).index_copy_(0, self._slots, x)
        return x.unflatten(0, (-1, self._size)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, x: Tensor, heads: int) -> Tensor:
        """The inverse of `_by_prompt`."""
        x = x.unflatten(2, (-1, heads)).transpose(1, 2).flatten(0, 1)
        return x if self._slots is None else x[self._slots]


def last_tokens(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and positions `[b, 1]` of the last tokens of rows; padding is not counted."""
    return ids[:, -1:], mask.sum(-1, keepdim=True) - 1


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    group_cache: GroupCache, scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None,
    softcap: float | None = None, **others: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of one new token per row, `[B, 1, H, D]`.

    Raises NotShared for attention that needs more than these arguments.
    """
    check_inputs(attention_mask, others)
    layer = group_cache.layers[int(module.layer_idx)]  # type: ignore[arg-type]
    if layer.window != sliding_window:
        raise NotShared(f"its attention has a window of {sliding_window} columns, and its cache one of {layer.window}")
    if layer.prompts[0].shape[1:4:2] != key.shape[1:4:2] or query.shape[2] != 1:
        raise NotShared("its cache does not hold the keys that its attention is given")
    query, key, value = in_computed_type(query, key, value)
    layer.append((key, value))
    return group_cache.attend(layer, query, scaling, softcap, dropout)[:, None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
