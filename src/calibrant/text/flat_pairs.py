"""Classifies pairs of texts without padding: the tokens of all pairs stand in one row.

Layers that treat each token by itself see no padding, and large matrix products, which suits a CPU. Attention is
computed for all pairs of one length together. From the queries of the last layer on, only the first token of each pair
is computed, because these classifiers read nothing else. Probabilities differ by rounding from those of padded rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel

from calibrant.policy.attention import attend_where_given

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Types of models whose layers are those of BERT and whose classifier reads the first token alone."""


class PairRuns(NamedTuple):
    """Where pairs stand in their row: `(tokens per pair, pairs in a row that have as many)`, and the last attention."""

    runs: Sequence[tuple[int, int]]
    last: nn.Module


def can_be_flat(model: PreTrainedModel) -> bool:
    """Whether pairs in one row get the logits of a classifier that they get in rows of their own."""
    config, known = model.config, type(model).__module__.startswith("transformers.models.")  # no code of a checkpoint
    return known and config.model_type in FAMILIES and config._attn_implementation == "sdpa" and not config.is_decoder


def flat_logits(model: PreTrainedModel, encoded: BatchEncoding) -> Tensor:
    """Logits `[B, L]` of B tokenised pairs without padding, which are best sorted by length."""
    lengths = [len(ids) for ids in encoded["input_ids"]]
    first_position = getattr(model.base_model.embeddings, "padding_idx", -1) + 1  # RoBERTa begins after its padding
    inputs = {
        name: torch.tensor([[token for row in encoded[name] for token in row]], device=model.device)
        for name in ("input_ids", "token_type_ids")
        if name in encoded
    }
    positions = torch.cat([torch.arange(length) for length in lengths])[None] + first_position
    starts = torch.tensor([0, *accumulate(lengths[:-1])], device=model.device)
    last = model.base_model.encoder.layer[-1]
    runs = PairRuns([(length, len(list(run))) for length, run in groupby(lengths)], last.attention.self)
    with _first_tokens(last, starts):
        logits: Tensor = model(**inputs, position_ids=positions.to(model.device), pair_runs=runs).logits
    return logits


@contextmanager
def _first_tokens(last: Any, starts: Tensor) -> Iterator[None]:
    """Computes the last layer after its attention for the tokens at `starts` alone: `[B, 1, D]`, a row per pair."""
    handles = [
        last.attention.output.register_forward_pre_hook(lambda _, inputs: tuple(x[:, starts] for x in inputs)),
        last.output.register_forward_hook(lambda _module, _inputs, output: output.transpose(0, 1)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, pairs: PairRuns, *, scaling: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention `[1, T, H, D]` of queries `[1, H, T, D]`, within each pair; in the last layer of first tokens alone."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    output = q.new_empty(q.shape)
    start = 0
    for length, count in pairs.runs:
        end, queries = start + length * count, 1 if module is pairs.last else length
        shape = (count, length, *q.shape[1:])
        a, b, c = (x[start:end].view(shape).transpose(1, 2) for x in (q, k, v))
        attended = nn.functional.scaled_dot_product_attention(a[:, :, :queries], b, c, scale=scaling)
        output[start:end].view(shape)[:, :queries] = attended.transpose(1, 2)
        start = end
    return output[None], None


attend_where_given("pair_runs", attend)
