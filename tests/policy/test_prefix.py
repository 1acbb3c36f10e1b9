"""Shared prompts against the plain forward, and the plain forward against one row at a time and TRL."""

import argparse
import copy
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
)

from calibrant.cli.check_prefix import add_options, run
from calibrant.errors import CalibrantError
from calibrant.policy import (
    check_prefix,
    group_chunks,
    head,
    logps_in_chunks,
    obstacles,
    plain_logps,
    shared_prefix_logps,
    worthwhile,
)
from calibrant.policy.cost import cached_cost, packed_cost, plain_cost
from calibrant.policy.packed import pack
from calibrant.policy.prompts import Batch, distinct_prompts

SIZE = dict(vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4)
SIZE |= dict(num_key_value_heads=2, head_dim=4, max_position_embeddings=128, pad_token_id=0)
MIXED = dict(sliding_window=5, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
CONFIGS = {
    "qwen2": (Qwen2Config, SIZE | dict(tie_word_embeddings=True)),
    "qwen2-window": (Qwen2Config, SIZE | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "llama": (LlamaConfig, SIZE),
    "mistral": (MistralConfig, SIZE | dict(sliding_window=5)),
    "gemma2": (Gemma2Config, SIZE | MIXED | dict(final_logit_softcapping=1.5)),
    "gemma3": (Gemma3TextConfig, SIZE | MIXED),
    "gpt2": (GPT2Config, dict(vocab_size=23, n_embd=16, n_layer=3, n_head=4, n_positions=128)),
    "cohere": (CohereConfig, SIZE | dict(logit_scale=3.0)),
    "granite": (GraniteConfig, SIZE | dict(logits_scaling=3.0)),
}
CASES = [
    (kind, attention, route)
    for kind in CONFIGS
    for attention in (("eager",) if kind == "gemma2" else ("eager", "sdpa"))
    for route in (("cached",) if kind == "gpt2" else ("cached", "packed"))
]


def build(kind="llama", attention="sdpa", dtype=torch.float64, **changes):
    """A small random model whose next-token distributions are far from flat."""
    torch.manual_seed(0)
    config, options = CONFIGS[kind]
    model = AutoModelForCausalLM.from_config(config(**options | changes), dtype=dtype, attn_implementation=attention)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.ndim > 1 else weight.add_(torch.randn_like(weight) / 10)
    return model.eval()


def random_batch(which=(0, 1, 0, 2, 1, 0, 0), lengths=(9, 4, 1), ends=(6, 1, 3, 5, 0, 2, 6), columns=(9, 7), seed=0):
    """Rows of prompts `which` with left padding; completions with `ends` tokens of which the last column has none."""
    generator = torch.Generator().manual_seed(seed)
    which, (wide, long) = torch.tensor(which), columns
    prompts = torch.randint(1, 23, (len(lengths), wide), generator=generator)
    prompt_mask = (torch.arange(wide) >= wide - torch.tensor(lengths)[:, None]).long()
    completion_mask = (torch.arange(long) < torch.tensor(ends)[:, None]).long()
    completions = torch.randint(1, 23, (len(which), long), generator=generator)
    return Batch((prompts * prompt_mask)[which], prompt_mask[which], completions * completion_mask, completion_mask)


class InDouble(TorchFunctionMode):
    """Keeps float64 where models go down to float32 for norms and softmax."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            down = function is torch.Tensor.float or (function is torch.Tensor.to and torch.float32 in args)
            if down:
                return args[0]
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


def watch(model, see):
    """Calls `see` with the inputs of each forward."""
    model.model.register_forward_pre_hook(lambda _, args, given: see(given), with_kwargs=True)


def gradient(model, loss):
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def loss_of(result):
    """A scalar in which every token, entropy and state counts differently."""
    parts = [part for part in result if part is not None]
    return sum((part * torch.linspace(-1, 2, part.numel()).view_as(part).to(part)).sum() for part in parts)


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


@pytest.mark.parametrize("route", ["cached", "packed"])
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


@pytest.mark.parametrize("route", ["cached", "packed"])
def test_autocast_reaches_the_head_and_its_backward(route, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 50)
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
@given(shapes, st.sampled_from(["mistral", "gemma3", "qwen2"]), st.sampled_from(["cached", "packed"]))
def test_shared_is_plain_for_any_shape(shape, kind, route):
    which, lengths, (long, ends) = shape
    batch = random_batch(which, lengths, ends[: len(which)], (8, long), seed=len(which))
    model = build(kind)
    with InDouble():
        plain, shared = plain_logps(model, *batch), shared_prefix_logps(model, *batch, route=route)
        assert (shared.logps - plain.logps).abs().max() <= 1e-10
        expected, found = gradient(model, loss_of(plain)), gradient(model, loss_of(shared))
    assert (found - expected).norm() <= 1e-10 * expected.norm().clamp(min=1e-6)


@pytest.mark.parametrize("route", ["cached", "packed"])
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


@pytest.mark.parametrize("route", ["cached", "packed"])
def test_a_token_that_is_masked_inside_a_completion_is_not_seen(route):
    model, batch = build("mistral"), random_batch()
    batch.completion_mask[0, 2] = 0
    with InDouble():
        plain, shared = plain_logps(model, *batch), shared_prefix_logps(model, *batch, route=route)
    assert (shared.logps - plain.logps).abs().max() <= 1e-10
    assert plain.logps[0, 2] == 0 and plain.logps[0, 3] != 0


@pytest.mark.parametrize("route", ["cached", "packed"])
def test_each_distinct_prompt_is_computed_once(route, monkeypatch):
    model, batch, seen = build(), random_batch(), []
    model.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["input_ids"].shape), with_kwargs=True
    )
    shared_prefix_logps(model, *batch, route=route)
    # three prompts of 9 columns; completions of up to 6 tokens, of which the last is not needed
    assert seen[0][0] == 3 and (seen == [(3, 9), (7, 5)] if route == "cached" else len(seen) == 1)
    seen.clear()
    shared_prefix_logps(model, *batch, route=route, prefix_index=torch.arange(7))
    assert seen[0][0] == 7


def test_packed_rows_by_hand():
    # prompts [7, 8] and [_, 9]; the completions of the first are 1 2 3 and 4 5, that of the second 6 2
    batch = Batch(
        torch.tensor([[7, 8], [0, 9], [7, 8]]), torch.tensor([[1, 1], [0, 1], [1, 1]]),
        torch.tensor([[1, 2, 3], [6, 2, 0], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]]),
    )  # fmt: skip
    packed = pack(batch, distinct_prompts(batch))
    assert packed.ids.tolist() == [[0, 9, 6, 0, 0], [7, 8, 1, 2, 4]]
    assert packed.positions.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 2]]
    assert packed.segments.tolist() == [[0, 0, 2, -1, -1], [0, 0, 1, 1, 3]]
    assert packed.where.tolist() == [[False, True, True, False, False], [True] * 5]
    assert packed.slots.tolist() == [[2, 3], [2, 0], [4, 0]]


@pytest.mark.parametrize("entropies", [False, True])
def test_chunks_of_logits_change_nothing(monkeypatch, entropies):
    model, batch = build(), random_batch()
    whole = shared_prefix_logps(model, *batch, entropies=entropies)
    expected = gradient(model, loss_of(whole))
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 23 * 4)
    sizes = []
    hook = model.lm_head.register_forward_hook(lambda *call: sizes.append(call[2].numel()))
    cut = shared_prefix_logps(model, *batch, entropies=entropies)
    assert relative(gradient(model, loss_of(cut)), expected) <= 1e-12
    hook.remove()
    assert max(sizes) <= 23 * 4
    assert (cut.logps - whole.logps).abs().max() <= 1e-12


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


def test_gradient_checkpointing_takes_the_packed_route():
    model, batch = build(dtype=torch.float32), random_batch()
    expected = gradient(model, loss_of(plain_logps(model, *batch)))
    model.train().activation_checkpointing_enable()
    assert "gradient checkpointing" in obstacles(model)["cached"] and obstacles(model)["packed"] is None
    assert relative(gradient(model, loss_of(shared_prefix_logps(model, *batch))), expected) <= 1e-5
    with pytest.raises(CalibrantError, match=r"route cached.*gradient checkpointing"):
        shared_prefix_logps(model, *batch, route="cached")
    model.eval()
    assert obstacles(model)["cached"] is None


@pytest.mark.parametrize("route", ["cached", "packed"])
def test_data_parallel_reduces_once(route, tmp_path):
    model, batch = build(dtype=torch.float32), random_batch()
    expected = gradient(model, loss_of(plain_logps(model, *batch)))
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel, passes = torch.nn.parallel.DistributedDataParallel(model), []
        parallel.register_forward_pre_hook(lambda *_: passes.append(1))
        shared_prefix_logps(parallel, *random_batch((0, 0), (5,), (1, 0), (5, 1)), route=route).logps.sum().backward()
        for _ in range(2):
            model.zero_grad()
            loss_of(shared_prefix_logps(parallel, *batch, route=route)).backward()
        assert len(passes) == 3  # one for each backward, whatever the route
        found = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    finally:
        torch.distributed.destroy_process_group()
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("route", ["cached", "packed"])
def test_lora(route):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model, batch = peft.get_peft_model(build("qwen2"), config), random_batch()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with InDouble():
        results = plain_logps(model, *batch), shared_prefix_logps(model, *batch, route=route)
        grads = [torch.cat([g.flatten() for g in torch.autograd.grad(loss_of(r), trained)]) for r in results]
    assert (results[1].logps - results[0].logps).abs().max() <= 1e-10
    assert relative(grads[1], grads[0]) <= 1e-10
    assert check_prefix(model).equal


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_are_refused(kind):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(build(), getattr(peft, kind)(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(CalibrantError, match="virtual tokens"):
        shared_prefix_logps(model, *random_batch())


def test_the_cheaper_route_is_taken():
    model, passes = build(), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    shared_prefix_logps(model, *random_batch((0,) * 8, (60,), (3,) * 8, (60, 3)))
    assert len(passes) == 1  # packed: short completions
    passes.clear()
    shared_prefix_logps(model, *random_batch((0,) * 8, (6,), (40,) * 8, (6, 40)))
    assert len(passes) == 2  # cached: long completions


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
    model.activation_checkpointing_enable()
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


def test_worthwhile():
    assert worthwhile(800, 8, 128, 16) and worthwhile(800, 8, 128, 16, packed=True)
    assert not worthwhile(80, 8, 8, 8) and not worthwhile(80, 8, 8, 8, packed=True)
    assert not worthwhile(1, 1, 2, 500) and not worthwhile(1, 1000, 1000, 1)
    assert worthwhile(100, 1, 16, 256, width=192) and not worthwhile(100, 1, 16, 256, width=192, packed=True)
    for bad in ((80, 9, 8, 8), (80, 0, 8, 8), (0, 1, 8, 8), (80, 1, 8, -1)):
        with pytest.raises(CalibrantError, match="num_distinct"):
            worthwhile(*bad)


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


def test_models_that_cannot():
    batch = random_batch()
    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=23, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(CalibrantError, match="cache that cannot be repeated"):
        shared_prefix_logps(mamba, *batch)
    scaled = AutoModelForCausalLM.from_config(HyperCLOVAXConfig(**SIZE, logits_scaling=3.0))
    with pytest.raises(CalibrantError, match="changes its logits"):
        shared_prefix_logps(scaled, *batch)
    with pytest.raises(CalibrantError, match="dynamic rotary positions"):
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        shared_prefix_logps(build(rope_parameters=rope), *batch)
    falcon = FalconConfig(vocab_size=23, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, alibi=True)
    assert "no rotary positions" in obstacles(AutoModelForCausalLM.from_config(falcon))["packed"]
    with pytest.raises(CalibrantError, match="no causal language model"):
        shared_prefix_logps(build().model, *batch)
    with pytest.raises(CalibrantError, match="flex_attention"):
        model = build()
        model.config._attn_implementation = "flex_attention"
        shared_prefix_logps(model, *batch, route="packed")
    sharded = build()
    sharded.lm_head.weight.ds_id = 0
    with pytest.raises(CalibrantError, match="spread over processes"):
        plain_logps(sharded, *batch)


def test_the_head_is_left_as_it_was():
    model, batch = build(), random_batch()
    shared_prefix_logps(model, *batch)
    model.model.forward = lambda **_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        plain_logps(model, *batch)
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float64, "mistral"), (torch.float32, "gemma3"), (torch.bfloat16, "qwen2")]
)
def test_check_of_a_sound_model(dtype, kind):
    model = build(kind, dtype=dtype).train()
    next(model.parameters()).grad = marker = torch.ones_like(next(model.parameters()))
    result = check_prefix(model, seed=1, temperature=0.7)
    assert result.equal and result.dtype == dtype
    assert [route.route for route in result.routes] == ["cached", "packed"]
    assert model.training and next(model.parameters()).grad is marker


@pytest.mark.parametrize("route", ["cached", "packed"])
@pytest.mark.parametrize("what", ["value", "gradient"])
def test_check_of_a_model_that_goes_wrong(route, what, monkeypatch):
    """Keys of the prompt lose their gradient, or are off by a little: both have to be seen."""
    model = build("qwen2", dtype=torch.float32)
    project = model.model.layers[0].self_attn.k_proj

    def spoil(module, args, out):
        rows = args[0].shape[0]
        if rows == 3:
            return out.detach() if what == "gradient" else out * 1.01
        return out

    project.register_forward_hook(spoil)
    result = check_prefix(model)
    broken = {check.route: check for check in result.routes}[route]
    assert not result.equal and not broken.equal
    assert (broken.logp_error <= 1e-4) == (what == "gradient")
    assert broken.gradient_error > 1e-4


def test_check_needs_a_gradient_and_knows_refusals():
    with pytest.raises(CalibrantError, match="unfreeze"):
        check_prefix(build().requires_grad_(False))
    result = check_prefix(build("gpt2").train())  # with dropout, which the check switches off
    assert result.equal and "rotary" in result.routes[1].obstacle
    alone = check_prefix(build(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}))
    assert not alone.equal


def test_check_keeps_special_tokens_out():
    model, seen = build(dtype=torch.float32), []
    watch(model, seen.append)
    check_prefix(model, SimpleNamespace(all_special_ids=[5, 6]))
    tokens = seen[0]["input_ids"][seen[0]["attention_mask"] == 1]
    assert not set(tokens.tolist()) & {5, 6} and len(set(tokens.tolist())) > 10


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return run(parser.parse_args(list(arguments)))


def test_command(capsys, monkeypatch):
    assert command("demo", "--seed", "3", "--temperature", "0.9") == 0
    said = capsys.readouterr().out
    assert "Qwen2ForCausalLM in float32" in said and said.count("equal") == 2
    from calibrant.policy import check

    monkeypatch.setitem(check.TOLERANCES, torch.float32, (0.0, 0.0))
    assert command("demo") == 1
    assert "DIFFERS" in capsys.readouterr().out
    with pytest.raises(CalibrantError, match="/nowhere"):
        command("/nowhere/at/all")
