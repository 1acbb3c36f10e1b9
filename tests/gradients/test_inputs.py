"""Extreme and bad inputs."""

import copy

import pytest
import torch
from builders_gradients import (
    INF,
    NAN,
    SMALL,
    TENSORS,
    Odd,
    assert_close,
    make_advantages,
    make_batch,
    oracle_variance,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import MistralConfig, MistralForCausalLM

from calibrant.errors import CalibrantError
from calibrant.gradients import gradient_variance


def test_half_precision_is_finite_and_near(models):
    model, batch = copy.deepcopy(models["qwen2"]), make_batch()
    advantages = make_advantages(dtype=torch.float32)
    expected = gradient_variance(model, batch, advantages)
    found = gradient_variance(model.bfloat16(), batch, advantages)
    assert found.variance.dtype == torch.float32
    assert torch.allclose(found.variance, expected.variance, rtol=0.1)


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_padding_of_any_length_in_any_attention(dtype, attention, window):
    """More padding than a window holds, on both sides of rows and within a prompt: values as without padding."""
    torch.manual_seed(0)
    config = MistralConfig(**SMALL, sliding_window=window, attn_implementation=attention)
    model, batch, advantages = MistralForCausalLM(config).to(dtype).eval(), make_batch(), make_advantages()
    pad = {key: functional.pad(rows, (5, 0) if "prompt" in key else (0, 5)) for key, rows in batch.items()}
    pad = {key: functional.pad(rows, (0, 3)) if "prompt" in key else rows for key, rows in pad.items()}
    for backend in ("hooks", "loop"):
        expected = gradient_variance(model, batch, advantages, backend="loop", gram=True).gram
        found = gradient_variance(model, pad, advantages, backend=backend, gram=True, rows_per_chunk=6)
        assert found.where.all() and found.fallback == ()
        assert_close(found.gram, expected, {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype])


@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_finite_whatever_the_advantages(models, backend):
    huge = torch.tensor([[1e30, -3e38, 0.0], [NAN, INF, 1e-40]])
    found = gradient_variance(models["qwen2"], make_batch(), huge, backend=backend, clusters=torch.zeros(2, 3).long())
    for name in set(TENSORS) - {"gram"}:
        assert torch.isfinite(getattr(found, name)).all() and (getattr(found, name) >= 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 10_000), st.sampled_from([None, 1, 3, 8]))
def test_any_group_is_its_definition(groups, rollouts, seed, rows_per_chunk):
    torch.manual_seed(seed)
    model = Odd("none").double()
    batch = make_batch(groups, rollouts, prompt=3, completion=4, seed=seed)
    batch["prompt_mask"] = torch.ones_like(batch["prompt_mask"])
    advantages = make_advantages(groups, rollouts, seed)
    found = gradient_variance(model, batch, advantages, rows_per_chunk=rows_per_chunk)
    parameters = list(model.parameters())
    for n in range(groups):
        rows = []
        for i in range(rollouts * n, rollouts * (n + 1)):
            ids = torch.cat([batch["prompt_ids"][i], batch["completion_ids"][i]])[None]
            logprobs = model(ids, None).logits[0, 2:-1].log_softmax(-1)
            total = sum(logprobs[t, batch["completion_ids"][i, t]] * batch["completion_mask"][i, t] for t in range(4))
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)]))
        assert_close(found.variance[n], oracle_variance(rows, advantages[n]), 1e-9)


BAD = [
    (dict(backend="ghost"), "backend has to be one of 'hooks', 'loop', got 'ghost'"),
    (dict(reduction="max"), "reduction has to be one of 'sum', 'mean', got 'max'"),
    (dict(temperature=0.0), "temperature has to be a finite number above 0, got 0.0"),
    (dict(temperature=NAN), "temperature has to be a finite number above 0, got nan"),
    (dict(rows_per_chunk=0), "rows_per_chunk has to be an integer of at least 1, got 0"),
    (dict(parameters=["*q_prj*"]), r"no parameter is named '\*q_prj\*'"),
    (dict(parameters=lambda name: False), "no parameter is chosen"),
    (dict(clusters=torch.zeros(2, 4).long()), "G is 3 in advantages and 4 in clusters"),
]


@pytest.mark.parametrize("options,message", BAD)
def test_bad_options(models, options, message):
    with pytest.raises(CalibrantError, match=message):
        gradient_variance(models["qwen2"], make_batch(), make_advantages(), **options)


def test_bad_batches(models):
    model, batch, advantages = models["qwen2"], make_batch(), make_advantages()

    def refuse(message, **changes):
        with pytest.raises(CalibrantError, match=message):
            gradient_variance(model, {**batch, **changes}, advantages)

    with pytest.raises(CalibrantError, match="no completion_mask; it needs prompt_ids"):
        gradient_variance(model, {k: v for k, v in batch.items() if k != "completion_mask"}, advantages)
    with pytest.raises(CalibrantError, match=r"N\*G is 0 in advantages"):
        gradient_variance(model, {key: rows[:0] for key, rows in batch.items()}, torch.zeros(0, 3))
    with pytest.raises(CalibrantError, match=r"N\*G is 8 in advantages and 6 in prompt_ids"):
        gradient_variance(model, batch, make_advantages(2, 4))
    refuse("completion_mask has to be a tensor of integers", completion_mask=batch["completion_mask"].float())
    refuse("T is 5 in completion_ids and 4 in completion_mask", completion_mask=batch["completion_mask"][:, :4])
    empty = batch["prompt_mask"].clone()
    empty[3] = 0
    refuse("the prompt of row 3 has no token", prompt_mask=empty)
    frozen = copy.deepcopy(model).requires_grad_(False)
    with pytest.raises(CalibrantError, match="pass parameters='all' to include frozen ones"):
        gradient_variance(frozen, batch, advantages)
