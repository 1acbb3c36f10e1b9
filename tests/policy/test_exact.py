"""Shared prompts against the plain forward, and the plain forward against one row at a time and TRL."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import CASES, CONFIGS, InDouble, build, gradient, loss_of, random_batch, relative

from calibrant.errors import CalibrantError
from calibrant.policy import head, plain_logps, shared_prefix_logps


def one_row_at_a_time(model, batch, temperature=1.0):
    """The obvious loop: whole logits of each row, one token after another."""
    rows, long = batch.completion_ids.shape
    wide = batch.prompt_ids.shape[1]
    logps, entropies = torch.zeros(2, rows, long, dtype=model.dtype)
    for row in range(rows):
        ids = torch.cat([batch.prompt_ids[row], batch.completion_ids[row]])[None]
        mask = torch.cat([batch.prompt_mask[row], batch.completion_mask[row]])[None]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
        for t in range(int(batch.completion_mask[row].sum())):
            distribution = torch.log_softmax(logits[wide + t - 1] / temperature, dim=-1)
            logps[row, t] = distribution[batch.completion_ids[row, t]]
            entropies[row, t] = -(distribution.exp() * distribution).sum()
    return logps, entropies


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_plain_is_the_loop_over_rows(kind):
    model, batch = build(kind, "eager"), random_batch()
    with InDouble(), torch.no_grad():
        result = plain_logps(model, *batch, temperature=0.7, entropies=True)
        logps, entropies = one_row_at_a_time(model, batch, 0.7)
    assert (result.logps - logps).abs().max() <= 1e-10
    assert (result.entropies - entropies).abs().max() <= 1e-10
    assert result.logps.min() < -2 and result.entropies.max() > 0.1


@pytest.mark.parametrize(("kind", "attention", "route"), CASES)
def test_shared_is_plain_in_float64(kind, attention, route):
    model, batch = build(kind, attention), random_batch()
    options = dict(temperature=0.7, entropies=True, hidden_states=True)
    with InDouble():
        plain = plain_logps(model, *batch, **options)
        shared = shared_prefix_logps(model, *batch, **options, route=route)
        expected, found = gradient(model, loss_of(plain)), gradient(model, loss_of(shared))
    for a, b in zip(shared, plain, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype == torch.float64
        assert (a - b).abs().max() <= 1e-10
    assert expected.norm() > 0.1
    assert relative(found, expected) <= 1e-10


@pytest.mark.parametrize(("kind", "attention", "route"), CASES)
def test_shared_is_plain_in_float32(kind, attention, route):
    model, batch = build(kind, attention, torch.float32), random_batch()
    plain, shared = plain_logps(model, *batch), shared_prefix_logps(model, *batch, route=route)
    assert (shared.logps - plain.logps).abs().max() <= 1e-5
    assert relative(gradient(model, loss_of(shared)), gradient(model, loss_of(plain))) <= 1e-5


@pytest.mark.parametrize("route", ["cached", "packed", "flat"])
def test_half_precision_is_near_float32_and_returned_in_float32(route):
    exact, batch = build("qwen2", dtype=torch.float32), random_batch()
    model = copy.deepcopy(exact).to(torch.bfloat16)
    shared = shared_prefix_logps(model, *batch, route=route, entropies=True, hidden_states=True)
    assert (shared.logps.dtype, shared.entropies.dtype) == (torch.float32, torch.float32)
    assert shared.hidden_states.dtype == torch.bfloat16
    expected = plain_logps(exact, *batch)
    assert (shared.logps - expected.logps).abs().max() <= 0.3
    shared, expected = shared.logps.sum(), expected.logps.sum()
    assert relative(gradient(model, shared).float(), gradient(exact, expected)) <= 0.1


@pytest.mark.parametrize("route", ["cached", "packed", "flat"])
def test_autocast_reaches_the_head_and_its_backward(route, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 50)
    monkeypatch.setattr(head, "KEPT_BYTES", 0)
    model, batch = build(dtype=torch.float32), random_batch()
    with torch.autocast("cpu", torch.bfloat16):
        plain = plain_logps(model, *batch)
        shared = shared_prefix_logps(model, *batch, route=route)
    inside = model.forward
    model.forward = torch.autocast("cpu", torch.bfloat16)(inside)  # as accelerate does
    patched = shared_prefix_logps(model, *batch, route=route)
    model.forward = inside
    assert torch.equal(shared.logps, patched.logps)
    assert 1e-4 < (shared.logps - plain_logps(model, *batch).logps).abs().max() <= 0.3
    assert relative(gradient(model, loss_of(shared)), gradient(model, loss_of(plain))) <= 0.05


shapes = st.integers(1, 4).flatmap(
    lambda prompts: st.tuples(
        st.lists(st.integers(0, prompts - 1), min_size=1, max_size=8),
        st.lists(st.integers(1, 8), min_size=prompts, max_size=prompts),
        st.integers(1, 5).flatmap(lambda long: st.tuples(st.just(long), st.lists(st.integers(0, long), min_size=8))),
    )
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shapes, st.sampled_from(["mistral", "gemma3", "qwen2"]), st.sampled_from(["cached", "packed", "flat"]))
def test_shared_is_plain_for_any_shape(shape, kind, route):
    which, lengths, (long, ends) = shape
    batch = random_batch(which, lengths, ends[: len(which)], (8, long), seed=len(which))
    model = build(kind)
    with InDouble():
        plain, shared = plain_logps(model, *batch), shared_prefix_logps(model, *batch, route=route)
        assert (shared.logps - plain.logps).abs().max() <= 1e-10
        expected, found = gradient(model, loss_of(plain)), gradient(model, loss_of(shared))
    assert (found - expected).norm() <= 1e-10 * expected.norm().clamp(min=1e-6)


@pytest.mark.parametrize("route", ["cached", "packed", "flat"])
def test_edges(route):
    model = build("qwen2")
    cases = {
        "one row": random_batch((0,), (5,), (4,), (5, 4)),
        "G = 1": random_batch((2, 0, 1), (5, 3, 1), (4, 2, 3), (5, 4)),
        "T = 1": random_batch((0, 0, 1), (5, 3), (1, 0, 1), (5, 1)),
        "one token": random_batch((0, 0, 1), (5, 3), (1, 0, 1), (5, 4)),
        "all empty": random_batch((0, 0, 1), (5, 3), (0, 0, 0), (5, 4)),
    }
    for name, batch in cases.items():
        with InDouble():
            plain, shared = plain_logps(model, *batch), shared_prefix_logps(model, *batch, route=route)
            assert (shared.logps - plain.logps).abs().max() <= 1e-10, name
            assert (shared.logps == 0).equal(batch.completion_mask == 0), name
            found, expected = gradient(model, shared.logps.sum()), gradient(model, plain.logps.sum())
        assert (found - expected).abs().max() <= 1e-10, name
    none = random_batch((0, 0), (5,), (0, 0), (5, 0))
    assert shared_prefix_logps(model, *none, route=route).logps.shape == (2, 0)


@pytest.mark.parametrize("route", ["cached", "packed", "auto"])
def test_a_token_that_is_masked_inside_a_completion_is_not_seen(route):
    model, batch = build("mistral"), random_batch()
    batch.completion_mask[0, 2] = 0
    with InDouble():
        plain, shared = plain_logps(model, *batch), shared_prefix_logps(model, *batch, route=route)
    assert (shared.logps - plain.logps).abs().max() <= 1e-10
    assert plain.logps[0, 2] == 0 and plain.logps[0, 3] != 0
    with pytest.raises(CalibrantError, match="padding elsewhere"):
        shared_prefix_logps(model, *batch, route="flat")


def test_trl_gives_the_same():
    from trl import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    model, batch = build("gemma2", "eager", torch.float32), random_batch()
    patched = copy.deepcopy(model)
    add_fused_lm_head(patched, temperature=0.7, outputs=("log_probs", "entropy"))
    trainer = SimpleNamespace(accelerator=SimpleNamespace(autocast=nullcontext))
    ids, mask = torch.cat([batch.prompt_ids, batch.completion_ids], 1), torch.cat([batch[1], batch[3]], 1)
    theirs = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__(
        trainer, patched, ids, mask, batch.completion_ids.shape[1], compute_entropy=True
    )
    for ours in (
        plain_logps(model, *batch, temperature=0.7, entropies=True),
        shared_prefix_logps(model, *batch, temperature=0.7, entropies=True, route="cached"),
        shared_prefix_logps(patched, *batch, temperature=0.7, entropies=True, route="packed"),
    ):
        assert (ours.logps - theirs[0]).abs().max() <= 1e-5
        assert (ours.entropies - theirs[1]).abs().max() <= 1e-5
    expected = gradient(patched, (theirs[0] * torch.linspace(-1, 2, 49).view(7, 7)).sum())
    shared = shared_prefix_logps(model, *batch, temperature=0.7)
    assert relative(gradient(model, loss_of(shared)), expected) <= 1e-5
