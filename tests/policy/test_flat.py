"""The flat route: one sequence of real tokens, by hand; blocks of its attention; models whose attention cannot."""

import pytest
import torch
from small_models import InDouble, build, gradient, loss_of, random_batch, relative
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from calibrant.errors import CalibrantError
from calibrant.policy import flat, logps_in_chunks, plain_logps, shared_prefix_logps
from calibrant.policy.flat_attention import PromptBlocks, attend
from calibrant.policy.prompts import Tokens, distinct_prompts
from calibrant.policy.verify import NotShared, record_of


def test_one_sequence_by_hand():
    # prompts [7, 8] and [_, 9]; the completions of the first are 1 2 3 and 4 5, that of the second 6 2
    batch = Tokens(
        torch.tensor([[7, 8], [0, 9], [7, 8]]), torch.tensor([[1, 1], [0, 1], [1, 1]]),
        torch.tensor([[1, 2, 3], [6, 2, 0], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]]),
    )  # fmt: skip
    made = flat.flatten(batch, distinct_prompts(batch))
    assert made.ids.tolist() == [[9, 6, 7, 8, 4, 1, 2]]  # short completions first
    assert made.positions.tolist() == [[1, 2, 0, 1, 2, 2, 3]]
    assert made.last.tolist() == [3, 0, 3]
    assert made.slots.tolist() == [[5, 6], [1, 0], [4, 0]]
    assert [block[:2] for block in made.blocks] == [(0, 0), (0, 1), (2, 2), (2, 4)]
    assert [block.tokens.tolist() for block in made.blocks] == [[[0]], [[1]], [[2, 3]], [[4, 4], [5, 6]]]
    assert made.blocks[-1].where.tolist() == [[True, False], [True, True]]
    assert all(block.where is None for block in made.blocks[:-1])


@pytest.mark.parametrize("kind", ["qwen2", "mistral", "gemma3"])
@pytest.mark.parametrize(("tile", "scores"), [(2, 1), (3, 150), (4, 10**6)])
def test_blocks_change_nothing(kind, tile, scores, monkeypatch):
    monkeypatch.setattr(flat, "TILE", tile)
    monkeypatch.setattr(flat, "SCORES", {"cpu": scores})
    model, batch = build(kind), random_batch()
    with InDouble():
        plain, shared = plain_logps(model, *batch), shared_prefix_logps(model, *batch, route="flat")
        assert (shared.logps - plain.logps).abs().max() <= 1e-10
        expected, found = gradient(model, loss_of(plain)), gradient(model, loss_of(shared))
    assert relative(found, expected) <= 1e-10
    blocks = flat.flatten(batch, distinct_prompts(batch)).blocks
    assert max(block.tokens.shape[1] for block in blocks if block.start == block.end) <= tile
    rows = [len(block.tokens) for block in blocks if len(block.tokens) > 1]
    assert bool(rows) == (scores > 1)


def test_other_passes_attend_as_before():
    model, ids = build(), torch.arange(1, 9)[None]
    expected = model(input_ids=ids).logits
    usual = ALL_ATTENTION_FUNCTIONS["sdpa"].__wrapped__
    try:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", usual)
        assert torch.equal(model(input_ids=ids).logits, expected)
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", shared_attention)


shared_attention = ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_attention_without_the_function_is_noticed():
    model, batch = build(dtype=torch.float32), random_batch((0,) * 8, (60,), (6,) * 8, (60, 6))
    layer = model.model.layers[1].self_attn
    inside = layer.forward
    layer.forward = lambda *args, prompt_blocks=None, **keywords: inside(*args, **keywords)
    with pytest.raises(CalibrantError, match="not all of its layers"):
        shared_prefix_logps(model, *batch, route="flat")
    found = logps_in_chunks(model, *batch, rows_per_chunk=8).logps
    assert "not all of its layers" in record_of(model).failed["flat"]
    assert any(way.startswith("cached") or way.startswith("packed") for way in record_of(model).verified)
    assert (found - plain_logps(model, *batch).logps).abs().max() <= 1e-5


@pytest.mark.parametrize("option", [{"softcap": 2.0}, {"dropout": 0.1}, {"is_causal": False}, {"s_aux": torch.ones(4)}])
def test_attention_that_needs_more_is_refused(option):
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(NotShared, match=next(iter(option))):
        attend(torch.nn.Module(), query, query, query, blocks=PromptBlocks([], torch.arange(3)), **option)
