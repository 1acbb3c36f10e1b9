"""Attention of one sequence in which prompts stand once (`calibrant.policy.flat`), with gradients.

A block says which tokens attend together: tiles of a prompt to what precedes them in it, completions to their prompt.
The queries of a block attend to the keys of its prefix, all heads that share keys and all rows in one matrix product,
and to those of their own row: `O = softmax(scaling [Q K_prefix^T, Q K_own^T]) [V_prefix; V_own]`. Scores are computed
again in the backward pass, one block at a time, so that none are kept. Softmax in at least float32.

Letters: M tokens, H heads of queries, K heads of keys and values (each for H / K of queries), D their width; a block
has R rows of t tokens and a prefix of P.

It takes the place of transformers' attention "sdpa" for passes that are given `prompt_blocks`, and leaves others as
they are: so it is found again when gradient checkpointing runs a layer once more in the backward pass.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from calibrant.policy.attention import attend_where_given, in_computed_type, unknown_tensors
from calibrant.policy.verify import NotShared


class Block(NamedTuple):
    """R rows of t tokens, which attend to the tokens `start` to `end` and, causally, to their own row."""

    start: int
    end: int
    tokens: Tensor  # [R, t], where the tokens of each row stand; a row is filled up with its first token
    where: Tensor | None  # [R, t], which are not filling; None: all


class PromptBlocks:
    """What a pass over one sequence gives to its attention; FSDP2 hands on copies of dataclasses and lists instead.

    Attributes:
        positions: `[M]`.
        layers: numbers of the layers that attended by the blocks.
    """

    def __init__(self, blocks: list[Block], positions: Tensor) -> None:
        self.blocks, self.positions = blocks, positions
        self.layers: set[object] = set()


class _Attention(torch.autograd.Function):
    """Outputs `[M, H, D]` of queries `[M, H, D]`, keys and values `[M, K, D]`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, given: PromptBlocks, scaling: float, window: int | None
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.given, ctx.scaling, ctx.window = given, scaling, window
        output = torch.empty_like(query)
        with torch.autocast(query.device.type, enabled=False):
            for block, (queries, keys, values) in _parts(given, query * scaling, key, value):
                weights = _weights(given, block, queries, keys, window).to(value.dtype)
                _write(output, block, _product(weights, values))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (query, key, value), given, scaling = ctx.saved_tensors, ctx.given, ctx.scaling
        wide = torch.promote_types(key.dtype, torch.float32)
        of_query, of_key, of_value = torch.empty_like(query), *(torch.zeros_like(x, dtype=wide) for x in (key, value))
        with torch.autocast(query.device.type, enabled=False):
            for block, (queries, keys, values) in _parts(given, query * scaling, key, value):
                weights = _weights(given, block, queries, keys, ctx.window)
                outer = _rows(gradient, block, key.shape[1])
                if block.where is not None:
                    outer = outer * block.where[None, :, :, None, None]
                _add(of_value, block, weights.to(value.dtype), outer)
                inner = torch._softmax_backward_data(_scores(outer, values), weights, -1, weights.dtype).to(key.dtype)
                _add(of_key, block, inner, queries)
                _write(of_query, block, _product(inner, keys))
        return of_query.mul_(scaling), of_key.to(key.dtype), of_value.to(value.dtype), None, None, None


Parts = tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def _parts(given: PromptBlocks, query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Block, Parts]]:
    """Of each block: queries `[K, R, t, H / K, D]`; keys and values of prefix `[K, P, D]` and rows `[K R, t, D]`."""
    for block in given.blocks:
        keys, values = ((x[block.start : block.end].transpose(0, 1), _own(x, block)) for x in (key, value))
        yield block, (_rows(query, block, key.shape[1]), keys, values)


def _own(x: Tensor, block: Block) -> Tensor:
    return x[block.tokens].permute(2, 0, 1, 3).flatten(0, 1)


def _rows(x: Tensor, block: Block, heads: int) -> Tensor:
    return x[block.tokens].unflatten(2, (heads, -1)).permute(2, 0, 1, 3, 4).contiguous()


def _scores(queries: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
    """`[K, R, t, H / K, P + t]`: products with prefix and own row, in at least float32."""
    (prefix, own), shape = keys, queries.shape[:-1]
    wide = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.new_empty(*shape, prefix.shape[1] + own.shape[1], dtype=wide)
    scores[..., : prefix.shape[1]] = (queries.flatten(1, 3) @ prefix.mT).view(*shape, -1)
    scores[..., prefix.shape[1] :] = (queries.flatten(2, 3).flatten(0, 1) @ own.mT).view(*shape, -1)
    return scores


def _weights(
    given: PromptBlocks, block: Block, queries: Tensor, keys: tuple[Tensor, Tensor], window: int | None
) -> Tensor:
    """Softmax of the scores of what each token sees."""
    scores, length = _scores(queries, keys), block.tokens.shape[1]
    scores[..., -length:] += scores.new_full((length, length), -torch.inf).triu(1)[:, None]
    if window is not None:
        own, before = given.positions[block.tokens], given.positions[block.start : block.end]
        columns = torch.cat([before.expand(len(own), -1), own], dim=1)
        far = own[:, :, None] - columns[:, None] >= window
        scores.masked_fill_(far[:, :, None], -torch.inf)
    return scores.softmax(-1)


def _product(weights: Tensor, values: tuple[Tensor, Tensor]) -> Tensor:
    """`[K, R, t, H / K, D]`: weights times prefix and own row."""
    prefix, own = values
    columns, shape = prefix.shape[1], (*weights.shape[:-1], own.shape[2])
    output = (weights[..., columns:].flatten(2, 3).flatten(0, 1) @ own).view(shape)
    return output.add_((weights[..., :columns].flatten(1, 3) @ prefix).view(shape)) if columns else output


def _add(total: Tensor, block: Block, weights: Tensor, rows: Tensor) -> None:
    """Adds weights, transposed, times rows `[K, R, t, H / K, D]` to prefix and own row of `[M, K, D]`."""
    columns = block.end - block.start
    if columns:
        total[block.start : block.end] += (weights[..., :columns].flatten(1, 3).mT @ rows.flatten(1, 3)).transpose(0, 1)
    own = weights[..., columns:].flatten(2, 3).flatten(0, 1).mT @ rows.flatten(2, 3).flatten(0, 1)
    own = own.unflatten(0, (total.shape[1], -1)).permute(1, 2, 0, 3)
    total.index_add_(0, block.tokens.flatten(), own.flatten(0, 1).to(total.dtype))


def _write(output: Tensor, block: Block, values: Tensor) -> None:
    """Puts `[K, R, t, H / K, D]` where the tokens of a block stand in `[M, H, D]`."""
    values = values.permute(1, 2, 0, 3, 4).flatten(2, 3)
    if block.where is None:
        output[block.tokens.flatten()] = values.flatten(0, 1)
    else:
        output[block.tokens[block.where]] = values[block.where]


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, blocks: PromptBlocks, *, scaling: float | None = None,
    dropout: float = 0.0, sliding_window: int | None = None, **others: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention `[1, M, H, D]` of queries `[1, H, M, D]`; NotShared for one that needs more than these arguments."""
    unknown = unknown_tensors(others)
    unknown += ["softcap"] if others.get("softcap") is not None else []
    unknown += ["dropout"] if dropout else []
    if unknown or others.get("is_causal") is False:
        raise NotShared(f"its attention is given {', '.join(unknown) or 'is_causal=False'}, which is not known here")
    blocks.layers.add(getattr(module, "layer_idx", module))
    value, key, query = (x[0].transpose(0, 1) for x in in_computed_type(value, key, query))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window if sliding_window is not None and int(blocks.positions.max()) >= sliding_window else None
    return _Attention.apply(query, key, value, blocks, scaling, window)[None], None


attend_where_given("prompt_blocks", attend)
