"""Decoding by replays of a captured pass. On a CPU a replay runs the captured function again, which reads and writes
the same tensors; `test_gpu.py` captures CUDA graphs."""

import warnings

import pytest
import torch
from small_models import build
from test_group_attention import prompts, sampled
from torch.utils._python_dispatch import TorchDispatchMode

from calibrant.policy import graphs, group_attention, prefill, replays
from calibrant.policy.prefill import shared_prefill
from calibrant.policy.replays import LAUNCHES, REPLAYED, ReplayedCache
from calibrant.policy.verify import record_of

WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "masked_select", "unique_dim", "_unique2"}
"""Operations that wait for a GPU, or whose shapes depend on values: they cannot be captured."""


class Watched(TorchDispatchMode):
    """Notes the names of operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        indices = [x for x in args if isinstance(x, (list, tuple))]
        if any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for group in indices for x in group):
            self.names.add("nonzero")  # of an index
        return function(*args, **(kwargs or {}))


class Again(graphs.Captured):
    """Runs the captured function again in each replay."""

    made, replays, operations = 0, 0, set()

    def __init__(self, function, device):
        self.function = function
        with graphs.noting() as self.notes, Watched() as watched:
            function()
        type(self).operations |= watched.names
        type(self).made += 1

    def replay(self):
        type(self).replays += 1
        with graphs.noting() as self.notes:
            return self.function().clone()


@pytest.fixture
def again(monkeypatch):
    """Replays on a CPU, with room for four tokens at a time."""
    Again.made, Again.replays, Again.operations = 0, 0, set()
    monkeypatch.setattr(replays, "Captured", Again)
    monkeypatch.setattr(replays, "ROOM", 4)
    monkeypatch.setattr(replays, "MOST_ROOM", 4)
    monkeypatch.setattr(prefill, "replayable", lambda model, _: REPLAYED not in record_of(model).failed)
    return Again


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "granite", "mistral", "qwen2-window", "gemma3"])
def test_the_samples_of_generate(again, kind):
    model = build(kind)
    plain = sampled(model, *prompts())
    with shared_prefill(model):
        assert torch.equal(sampled(model, *prompts()), plain)
    assert again.replays > 6 and REPLAYED in record_of(model).verified and not record_of(model).failed
    assert not again.operations & WAITS
    assert {"mm", "addmm", "bmm"} & again.operations  # what is watched is the model


def test_captures_follow_the_room_and_the_rows(again, monkeypatch):
    model = build()
    with shared_prefill(model):
        sampled(model, *prompts(), max_new_tokens=2)  # compares both ways once
        before = again.made
        sampled(model, *prompts(), min_new_tokens=14, max_new_tokens=14)
        assert again.made == before + 4  # at 1, 5, 9 and 13 own tokens
        before = again.made
        sampled(model, *prompts())
        few, before = again.made - before, again.made
        monkeypatch.setattr(ReplayedCache, "dropped", 1e-9)  # each row that ends
        sampled(model, *prompts())
        assert again.made - before > few


def test_states_are_recorded_in_replays(again):
    model = build()
    with shared_prefill(model, states=True, block=True) as decoded:
        ids = sampled(model, *prompts())
    again_ids, mask = ids[:, 20:], torch.ones_like(ids[:, 20:])
    found, block = decoded.states_of(again_ids, mask), decoded.block_inputs_of(again_ids, mask)
    assert again.replays > 4
    plain = build()
    with shared_prefill(plain, states=True, block=True) as expected:
        replays_before = again.replays
        record_of(plain).failed[REPLAYED] = "not in this test"
        assert torch.equal(sampled(plain, *prompts()), ids)
    assert again.replays == replays_before
    alive = expected.states_of(again_ids, mask).abs().sum(-1) > 0  # rows leave later in replays
    torch.testing.assert_close(found[alive], expected.states_of(again_ids, mask)[alive])
    other = expected.block_inputs_of(again_ids, mask)
    torch.testing.assert_close(block.rollouts[alive], other.rollouts[alive])
    torch.testing.assert_close(block.prompts[block.where], other.prompts[other.where])


def test_what_cannot_be_captured_is_launched(again, monkeypatch):
    def fails(function, device):
        again.made += 1
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(replays, "Captured", fails)
    model = build()
    plain = sampled(model, *prompts())
    reason = "RuntimeError: operation not permitted when stream is capturing"
    with pytest.warns(UserWarning, match=reason) as caught, shared_prefill(model):
        assert torch.equal(sampled(model, *prompts()), plain)
    assert [str(w.message) for w in caught if LAUNCHES in str(w.message)] and again.made == 1
    with warnings.catch_warnings(), shared_prefill(model):
        warnings.simplefilter("error")
        assert torch.equal(sampled(model, *prompts()), plain)
    assert again.made == 1


def test_a_replay_that_differs_is_not_used(again, monkeypatch):
    replay = again.replay
    monkeypatch.setattr(again, "replay", lambda self: replay(self) + 1.0)
    model = build()
    plain = sampled(model, *prompts())
    with pytest.warns(UserWarning, match="a replay differs from the pass that was captured"), shared_prefill(model):
        assert torch.equal(sampled(model, *prompts()), plain)
    assert again.replays == 1


def test_only_passes_on_a_gpu_are_replayed():
    layers = [group_attention.GroupLayer([torch.zeros(1, 1, 1, 1)] * 2, None)]
    cache = group_attention.GroupCache(layers, torch.ones(1, 1), torch.tensor([0]))
    assert not replays.replayable(build(), cache)
    layers[0].prompts = [x.to("meta") for x in layers[0].prompts]
    assert not replays.replayable(build(), cache)
