"""Chunks of rows, the costs of routes, and arguments that are refused."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import build, random_batch, watch

from calibrant.errors import CalibrantError
from calibrant.policy import group_chunks, logps_in_chunks, plain_logps, shared_prefix_logps
from calibrant.policy.logits import logps_of_logits
from calibrant.policy.prompts import distinct_prompts
from calibrant.policy.routes import cached_cost, cheapest, packed_cost, plain_cost


def test_chunks_of_rows_are_the_whole():
    model, batch = build(dtype=torch.float32), random_batch()
    options = dict(temperature=0.7, entropies=True, hidden_states=True)
    whole = plain_logps(model, *batch, **options)
    for rows in (1, 2, 3, 100):
        parts = logps_in_chunks(model, *batch, rows_per_chunk=rows, **options)
        assert all((a - b).abs().max() <= 1e-5 for a, b in zip(parts, whole, strict=True))
    bare = logps_in_chunks(model, *batch, rows_per_chunk=4)
    assert bare.entropies is None and bare.hidden_states is None


def test_chunks_share_where_it_pays(monkeypatch):
    model, seen = build(), []
    watch(model, lambda given: seen.append(len(given["input_ids"])))
    batch = random_batch((0, 1, 0, 1, 0, 1), (60, 60), (3,) * 6, (60, 3))
    logps_in_chunks(model, *batch, rows_per_chunk=3, route="packed")
    assert seen == [1, 1]
    seen.clear()
    logps_in_chunks(model, *batch, rows_per_chunk=1, route="packed")
    assert seen == [1] * 6
    seen.clear()
    logps_in_chunks(model, *random_batch((0, 0), (2,), (40, 40), (2, 40)), rows_per_chunk=2)
    assert seen == [2]  # plainly: nothing to gain


def test_chunks_of_a_model_that_shares_nothing_are_plain():
    model, batch = build("gpt2", dtype=torch.float32).train(), random_batch()
    model.gradient_checkpointing_enable()
    with pytest.raises(CalibrantError, match=r"gradient checkpointing.*no rotary positions"):
        shared_prefix_logps(model, *batch)
    with pytest.raises(CalibrantError, match="route packed"):
        logps_in_chunks(model, *batch, rows_per_chunk=4, route="packed")
    assert logps_in_chunks(model, *batch, rows_per_chunk=1, route="packed").logps.shape == (7, 7)
    model.eval()
    expected = plain_logps(model, *batch).logps
    model.train()
    for module in model.modules():
        module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
    assert (logps_in_chunks(model, *batch, rows_per_chunk=4).logps - expected).abs().max() <= 1e-5


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 9))
def test_group_chunks(which, rows):
    chunks = group_chunks(torch.tensor(which), rows)
    assert sorted(torch.cat(chunks).tolist()) == list(range(len(which)))
    assert all(len(chunk) <= rows for chunk in chunks)
    for prompt in set(which):
        holding = sum(any(which[row] == prompt for row in chunk.tolist()) for chunk in chunks)
        assert holding == -(-which.count(prompt) // rows)  # no more cuts than its size needs


def test_costs_by_hand():
    # width 1: a token that attends to L columns costs 1 + L / 6
    assert plain_cost(4, 3, 2, 1) == pytest.approx(64 + 3 * 6 * (1 + 6 / 6))
    assert cached_cost(6, 2, 4, 4, 1) == pytest.approx(128 + 2 * 6 * 2 + 0.03 * 24 + 4 * 3 * (1 + 9 / 6))
    assert cached_cost(6, 2, 4, 1, 1) == pytest.approx(64 + 2 * 6 * 2)
    assert packed_cost(6, 2, 6, 1) == pytest.approx(64 + 2 * 12 * (1 + 12 / 6))


def pays(prompt, distinct, rows, completion, *, width=1024, route="cached"):
    """Whether a route is expected to be cheaper than the plain forward, for equally long completions."""
    batch = random_batch([row % distinct for row in range(rows)], [prompt] * distinct, [completion] * rows,
                         (prompt, completion))  # fmt: skip
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=width)))
    return cheapest(model, batch, distinct_prompts(batch, torch.arange(rows) % distinct), [route])[1]


def test_sharing_pays_for_long_prompts_and_short_completions():
    assert pays(800, 8, 128, 16) and pays(800, 8, 128, 16, route="packed")
    assert not pays(80, 8, 8, 8) and not pays(80, 8, 8, 8, route="packed")
    assert not pays(1, 1, 2, 500) and not pays(1, 100, 100, 1)
    assert pays(100, 1, 16, 256, width=192) and not pays(100, 1, 16, 256, width=192, route="packed")


def test_numbers_of_prompts_are_checked():
    model, batch = build(), random_batch()
    numbers = torch.tensor([5, 9, 5, 7, 9, 5, 5])
    same = shared_prefix_logps(model, *batch, prefix_index=numbers).logps
    assert (
        torch.equal(same, shared_prefix_logps(model, *batch).logps)
        or (same - plain_logps(model, *batch).logps).abs().max() < 1e-6
    )
    with pytest.raises(CalibrantError, match="row 3 the number 5, as row 0 has"):
        shared_prefix_logps(model, *batch, prefix_index=torch.tensor([5, 9, 5, 5, 9, 5, 5]))
    with pytest.raises(CalibrantError, match=r"prefix_index \[B\]"):
        shared_prefix_logps(model, *batch, prefix_index=torch.zeros(3, dtype=torch.long))


def test_prompts_that_differ_in_the_mask_alone_are_different():
    batch = random_batch((0, 0), (4,), (2, 2), (4, 2))
    batch.prompt_mask[1, 0] = 0
    assert len(distinct_prompts(batch).first) == 2


@pytest.mark.parametrize("compute", [plain_logps, shared_prefix_logps, partial(logps_in_chunks, rows_per_chunk=2)])
def test_bad_input(compute):
    model, (ids, mask, tokens, counts) = build(), random_batch()
    with pytest.raises(CalibrantError, match="B is 7 in prompt_ids and 6 in completion_ids"):
        compute(model, ids, mask, tokens[1:], counts[1:])
    with pytest.raises(CalibrantError, match="prompt_mask has to hold 0 and 1"):
        compute(model, ids, mask * 2, tokens, counts)
    with pytest.raises(CalibrantError, match="completion_mask has to hold 0 and 1"):
        compute(model, ids, mask, tokens, counts.float())
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(CalibrantError, match="temperature"):
            compute(model, ids, mask, tokens, counts, temperature=temperature)


def test_bad_rows_per_chunk_and_route():
    model, batch = build(), random_batch()
    for rows in (0, -1, 2.0, True):
        with pytest.raises(CalibrantError, match="rows_per_chunk"):
            logps_in_chunks(model, *batch, rows_per_chunk=rows)
    with pytest.raises(CalibrantError, match="unknown route 'paked'"):
        shared_prefix_logps(model, *batch, route="paked")


def test_gradients_over_a_large_vocabulary_are_exact_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(8, 49152, generator=generator) * 3 + 2).requires_grad_()
    tokens = torch.randint(0, 49152, (8,), generator=generator)
    weight = torch.randn(49152, 16, generator=generator) + 1  # of a head: a common error of all words adds up
    exact = logits.double().log_softmax(-1).gather(-1, tokens[:, None]).sum()
    found, expected = (
        torch.autograd.grad(total, logits)[0] @ weight
        for total in (logps_of_logits(logits, tokens, 1.0, False)[0].sum(), exact)
    )
    assert (found - expected).norm() <= 6e-7 * expected.norm()
