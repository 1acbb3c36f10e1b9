"""The routes: what each computes once, which models can take them, adapters and data parallelism."""

import pytest
import torch
import torch.distributed
import transformers
from small_models import SIZE, InDouble, build, gradient, loss_of, random_batch, relative
from transformers import AutoModelForCausalLM, FalconConfig, MambaConfig

from calibrant.errors import CalibrantError
from calibrant.policy import check_prefix, head, obstacles, plain_logps, shared_prefix_logps
from calibrant.policy.packed import pack
from calibrant.policy.prompts import Tokens, distinct_prompts


@pytest.mark.parametrize("route", ["cached", "packed", "flat"])
def test_each_distinct_prompt_is_computed_once(route, monkeypatch):
    model, batch, seen = build(), random_batch(), []
    model.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["input_ids"].shape), with_kwargs=True
    )
    shared_prefix_logps(model, *batch, route=route)
    # three prompts of 9, 4 and 1 tokens; completions of up to 6 tokens, 17 of which are followed by another
    assert seen == {"cached": [(3, 9), (7, 5)], "packed": [(3, 22)], "flat": [(1, 9 + 4 + 1 + 17)]}[route]
    seen.clear()
    shared_prefix_logps(model, *batch, route=route, prefix_index=torch.arange(7))
    assert seen[0] == {"cached": (7, 9), "packed": (7, 14), "flat": (1, 4 * 9 + 2 * 4 + 1 + 17)}[route]


def test_packed_rows_by_hand():
    # prompts [7, 8] and [_, 9]; the completions of the first are 1 2 3 and 4 5, that of the second 6 2
    batch = Tokens(
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
    monkeypatch.setattr(head, "KEPT_BYTES", 0)
    sizes = []
    hook = model.lm_head.register_forward_hook(lambda *call: sizes.append(call[2].numel()))
    cut = shared_prefix_logps(model, *batch, entropies=entropies)
    assert relative(gradient(model, loss_of(cut)), expected) <= 1e-12
    hook.remove()
    assert max(sizes) <= 23 * 4
    assert (cut.logps - whole.logps).abs().max() <= 1e-12


@pytest.mark.parametrize("route", ["packed", "flat", "auto"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_shares_without_a_cache(route, reentrant):
    model, batch = build("gemma3", dtype=torch.float32), random_batch()
    expected = gradient(model, loss_of(plain_logps(model, *batch)))
    model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert "gradient checkpointing" in obstacles(model)["cached"]
    assert obstacles(model)["packed"] is obstacles(model)["flat"] is None
    layers, hook = [], lambda *_: layers.append(1)
    model.model.layers[0].mlp.register_forward_pre_hook(hook)
    loss_of(shared_prefix_logps(model, *batch, route=route)).backward()
    assert len(layers) == 1 + 1  # computed again in the backward pass
    assert relative(torch.cat([weight.grad.flatten() for weight in model.parameters()]), expected) <= 1e-5
    with pytest.raises(CalibrantError, match=r"route cached.*gradient checkpointing"):
        shared_prefix_logps(model, *batch, route="cached")
    model.eval()
    assert obstacles(model)["cached"] is None


@pytest.mark.parametrize("route", ["cached", "packed", "flat"])
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


@pytest.mark.parametrize("route", ["cached", "packed", "flat"])
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
    model, passes = build(attention="eager"), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    shared_prefix_logps(model, *random_batch((0,) * 8, (60,), (3,) * 8, (60, 3)))
    assert len(passes) == 1  # packed: short completions
    passes.clear()
    shared_prefix_logps(model, *random_batch((0,) * 8, (6,), (40,) * 8, (6, 40)))
    assert len(passes) == 2  # cached: long completions


def test_models_that_cannot():
    batch = random_batch()
    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=23, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(CalibrantError, match="cache that cannot be repeated"):
        shared_prefix_logps(mamba, *batch)
    if hasattr(transformers, "HyperCLOVAXConfig"):  # not in older versions
        scaled = AutoModelForCausalLM.from_config(transformers.HyperCLOVAXConfig(**SIZE, logits_scaling=3.0))
        with pytest.raises(CalibrantError, match="changes its logits"):
            shared_prefix_logps(scaled, *batch)
    with pytest.raises(CalibrantError, match="dynamic rotary positions"):
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        shared_prefix_logps(build(rope_parameters=rope), *batch)
    falcon = FalconConfig(vocab_size=23, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, alibi=True)
    assert "no rotary positions" in obstacles(AutoModelForCausalLM.from_config(falcon))["packed"]
    with pytest.raises(CalibrantError, match="no causal language model"):
        shared_prefix_logps(build().model, *batch)
    with pytest.raises(CalibrantError, match="runs eager, not sdpa"):
        shared_prefix_logps(build(attention="eager"), *batch, route="flat")
    with pytest.raises(CalibrantError, match="flex_attention"):
        model = build()
        model.config._attn_implementation = "flex_attention"
        shared_prefix_logps(model, *batch, route="packed")
    sharded = build()
    sharded.lm_head.weight.ds_id = 0
    with pytest.raises(CalibrantError, match="are sharded"):
        plain_logps(sharded, *batch)


def test_the_head_is_left_as_it_was():
    model, batch = build(), random_batch()
    shared_prefix_logps(model, *batch)
    model.model.forward = lambda **_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        plain_logps(model, *batch)
    assert not model.lm_head._forward_pre_hooks
