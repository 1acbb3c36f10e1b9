"""Run by torchrun in a test: models that FSDP2 shards over two processes, beside whole copies of them.

Each process has rows of its own, of other lengths. Weights in float64; in float32 for eager attention, which makes
NaN of rows that are all padding in float64.

Usage: two_sharded.py FOLDER
"""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import LoraConfig, get_peft_model
from small_models import build, random_batch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from calibrant.policy import flat, logps_in_chunks, plain_logps, prefill
from calibrant.policy.prefill import GROUPED, REPEATED, shared_prefill
from calibrant.policy.references import InitialReference, SlowReference
from calibrant.policy.routes import PASSES
from calibrant.policy.verify import NotShared, record_of

torch.set_num_threads(1)
ROWS = {"which": ((0, 1, 0, 2, 1, 0, 0), (1, 1, 1, 0, 0, 1, 1)), "lengths": ((9, 4, 1), (12, 3))}
ROWS |= {"ends": ((6, 1, 3, 5, 0, 2, 6), (2, 2, 9, 1, 3, 2, 1)), "columns": ((9, 7), (12, 10))}
ALL_DISTINCT = {"which": (0, 1, 2, 3, 4, 5, 6), "lengths": (3, 4, 5, 6, 7, 8, 9)}


def by_accelerate(model: torch.nn.Module, reshard: bool = True) -> torch.nn.Module:
    """As accelerate shards a model: its layers, the head with the last norm (and a tied embedding), the rest."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False,
        reshard_after_forward=reshard,
    )  # fmt: skip
    state = SimpleNamespace(fsdp_plugin=plugin)
    return fsdp2_prepare_model(SimpleNamespace(state=state, mixed_precision="no", is_main_process=False), model)


def kept_whole(model: torch.nn.Module) -> torch.nn.Module:
    """As accelerate shards a model with `reshard_after_forward: false`: weights stay whole until a backward pass."""
    return by_accelerate(model, reshard=False)


def strictly(model: torch.nn.Module, **options: object) -> torch.nn.Module:
    """Nothing stays whole after a forward pass, the head neither."""
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    for module in (*layers, model):
        fully_shard(module, reshard_after_forward=True, **options)
    return model


def made(kind: str, attention: str) -> torch.nn.Module:
    """A small model; "lora": Llama with an adapter that changes what it says."""
    dtype = torch.float64 if attention == "sdpa" else torch.float32
    if kind != "lora":
        return build(kind, attention, dtype)
    model = get_peft_model(build("llama", attention, dtype), LoraConfig(r=4, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return model.to(dtype)


def own_batch(rank: int, **changes: object) -> object:
    return random_batch(**({name: values[rank] for name, values in ROWS.items()} | {"seed": rank} | changes))


def values(function: object, model: torch.nn.Module, batch: object, **options: object) -> tuple[torch.Tensor, ...]:
    """Log-probabilities and entropies, after the backward pass of a loss of them."""
    model.zero_grad()
    found = function(model, *batch, temperature=0.7, entropies=True, **options)
    factors = torch.randn(found.logps.shape, generator=torch.Generator().manual_seed(7), dtype=found.logps.dtype)
    (found.logps * factors + found.entropies).sum().backward()
    return found.logps.detach(), found.entropies.detach()


def check_logps(rank: int, kind: str, attention: str, shard: object, route: str, **options: object) -> None:
    """Log-probabilities, entropies and gradients are those of the whole model."""
    whole, batch = made(kind, attention), own_batch(rank)
    model = shard(copy.deepcopy(whole))
    if options.pop("checkpointing", False):
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    expected = values(plain_logps, whole, batch)
    options = {"rows_per_chunk": 7} | options
    for _ in range(2):
        found = values(logps_in_chunks, model, batch, **options)
    assert record_of(model).verified == {f"{route}, sharded"}, (kind, record_of(model))
    allowed = 1e-5 if attention == "sdpa" else 1e-4
    torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)
    sharded = dict(model.named_parameters())
    for name, weight in whole.named_parameters():
        if not weight.requires_grad:
            continue
        dist.all_reduce(weight.grad)
        gradient = sharded[name].grad.full_tensor()
        error = (gradient - weight.grad / 2).norm() / weight.grad.norm().clamp(min=1e-9)
        assert error < allowed, (kind, name, float(error))
    with torch.no_grad():
        chunks = logps_in_chunks(model, *batch, temperature=0.7, rows_per_chunk=3).logps
    torch.testing.assert_close(chunks, expected[0], rtol=allowed, atol=allowed)


def of_nothing(*given: object) -> object:
    """The flat pass, with states of 0."""
    right = flat.flat_pass(*given)
    return right._replace(select=lambda states: 0 * right.select(states))


def refused(*_: object) -> object:
    raise NotShared("it is refused here")


def late(*given: object) -> object:
    """The flat pass, refused once it is computed."""
    return flat.flat_pass(*given)._replace(check=refused)


def check_agreement(rank: int) -> None:
    """A route that one process cannot take, or that fails or differs on one, is taken by neither."""
    whole = build("llama")
    for changes, spoiled, route in (
        (ALL_DISTINCT, None, "plain"), ({}, of_nothing, "packed"), ({}, refused, "packed"), ({}, late, "packed")
    ):  # fmt: skip
        batch, model = own_batch(rank, **(changes if rank else {})), strictly(copy.deepcopy(whole))
        if spoiled and rank:
            PASSES["flat"] = spoiled
        expected, found = values(plain_logps, whole, batch), values(logps_in_chunks, model, batch, rows_per_chunk=7)
        PASSES["flat"] = flat.flat_pass
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert record_of(model).verified == {f"{route}, sharded"}, record_of(model)
        assert ("flat" in record_of(model).failed) == (spoiled is not None)
    model, empty = strictly(copy.deepcopy(whole)), own_batch(rank, ends=(0,) * 7)
    assert not logps_in_chunks(model, *empty, rows_per_chunk=7).logps.any()
    assert not record_of(model).verified, record_of(model)  # nothing was compared


def check_agreement_in_generation(rank: int) -> None:
    """A way of generation that fails on one process after its pass is taken by neither."""
    whole = build("llama")
    model, batch, layers = strictly(copy.deepcopy(whole)), own_batch(rank), prefill._layers
    given = {"input_ids": batch.prompt_ids, "attention_mask": batch.prompt_mask, "pad_token_id": 0}
    prefill._layers = refused if rank else layers
    with shared_prefill(model):
        text = model.generate(**given, do_sample=False, max_new_tokens=5)
    prefill._layers = layers
    assert torch.equal(text, whole.generate(**given, do_sample=False, max_new_tokens=5))
    assert record_of(model).verified == {REPEATED} and set(record_of(model).failed) == {GROUPED}, record_of(model)


def check_generation(rank: int, kind: str, attention: str, shard: object) -> None:
    """Samples are those of the whole model, also where one process ends long before the other."""
    whole = made(kind, attention)
    model, batch = shard(copy.deepcopy(whole)), own_batch(rank)
    given = {"input_ids": batch.prompt_ids, "attention_mask": batch.prompt_mask, "pad_token_id": 0}
    if shard is not strictly:
        register_fsdp_forward_method(model, "generate")  # as transformers' Trainer does
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    for ends in ([22], [list(range(1, 23)), [22]][rank]):
        for options in ({"do_sample": False}, {"do_sample": True, "temperature": 0.9}):
            texts = []
            for generating in (whole, model):
                torch.manual_seed(3 + rank)
                with shared_prefill(generating, states=True) as decoded:
                    texts.append(generating.generate(**given, **options, eos_token_id=ends, max_new_tokens=12))
            assert torch.equal(*texts), (kind, texts)
            assert decoded.ids is None  # the head is not read outside of a pass
    assert GROUPED in record_of(model).verified and not record_of(model).failed, record_of(model)
    counts = [None, None]
    dist.all_gather_object(counts, len(passes))
    assert counts[0] == counts[1], counts
    one_row = {name: x[:1] if rank and isinstance(x, torch.Tensor) else x for name, x in given.items()}
    with shared_prefill(model):  # nothing to share on one process: neither does
        text = model.generate(**one_row, do_sample=False, eos_token_id=22, max_new_tokens=5)
    assert torch.equal(text, whole.generate(**one_row, do_sample=False, eos_token_id=22, max_new_tokens=5))


def check_half(rank: int) -> None:
    """Weights cast to bfloat16 by FSDP2: arguments with records of their own survive its copies."""
    model, batch = build("llama", dtype=torch.float32), own_batch(rank)
    plain = copy.deepcopy(model).bfloat16()
    casts = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.bfloat16)
    model = strictly(model, mp_policy=casts)
    found = values(logps_in_chunks, model, batch, rows_per_chunk=7)
    expected = values(plain_logps, plain, batch)
    assert record_of(model).verified == {"flat, sharded"}, record_of(model)
    asked = {"prompt_ids": batch.prompt_ids.roll(1, 0), "prompt_mask": batch.prompt_mask.roll(1, 0)}
    of_others = values(plain_logps, plain, batch._replace(**asked))
    error, difference = (float((x[0] - expected[0]).abs().mean()) for x in (found, of_others))
    assert error < 0.1 * difference  # of the same tokens after another row's prompt
    with shared_prefill(model):
        model.generate(input_ids=batch.prompt_ids, attention_mask=batch.prompt_mask, pad_token_id=0, max_new_tokens=3)
    assert GROUPED in record_of(model).verified, record_of(model)


def check_references(rank: int, folder: Path) -> None:
    """The policy before training and its moving average, sharded, are those of the whole model."""
    models, batch = [build("qwen2", dtype=torch.float32) for _ in range(2)], own_batch(rank)
    pairs = [
        (InitialReference(x, sharding), SlowReference(x, 0.6, 2, sharding))
        for x, sharding in zip(models, ("", "FSDP2"), strict=True)
    ]
    by_accelerate(models[1])

    @torch.no_grad()
    def logps(model: torch.nn.Module) -> torch.Tensor:
        return logps_in_chunks(model, *batch, rows_per_chunk=7).logps

    def of_references(kind: int) -> list[torch.Tensor]:
        found = []
        for model, references in zip(models, pairs, strict=True):
            before = logps(model)
            with references[kind].in_place(model):
                found.append(logps(model))
            assert torch.equal(logps(model), before)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        return found[0]

    start = of_references(0)
    assert torch.equal(start, of_references(1))
    for step in range(1, 5):
        for model in models:
            values(logps_in_chunks, model, batch, rows_per_chunk=7)
            for weight in model.parameters():
                if model is models[0]:
                    dist.all_reduce(weight.grad)
                with torch.no_grad():
                    weight.sub_(weight.grad, alpha=1e-3 if model is models[1] else 5e-4)
        for model, (_, slow) in zip(models, pairs, strict=True):
            slow.follow(model, step)
    assert torch.equal(start, of_references(0))
    average = of_references(1)
    assert (average - start).abs().max() > 1e-3 < (average - logps(models[0])).abs().max()
    pairs[1][1].save(folder, write=rank == 0)
    dist.barrier()
    again = SlowReference(models[1], sharding="FSDP2")
    again.load(folder, models[1])
    pairs[0][1].load(folder)
    for name, value in pairs[1][1].average.items():
        assert torch.equal(again.average[name].full_tensor(), value.full_tensor())
        assert torch.equal(pairs[0][1].average[name], value.full_tensor())  # a file of any number of processes


def main() -> None:
    """Runs all checks; an assertion that fails ends the process."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    check_logps(rank, "llama", "sdpa", strictly, "flat")
    check_logps(rank, "qwen2", "sdpa", by_accelerate, "flat")
    check_logps(rank, "qwen2-window", "sdpa", by_accelerate, "flat", checkpointing=True)
    check_logps(rank, "qwen2", "sdpa", kept_whole, "flat")
    check_logps(rank, "granite", "eager", by_accelerate, "packed")
    check_logps(rank, "gemma2", "eager", strictly, "packed", checkpointing=True)
    with pytest.warns(UserWarning, match="the plain path is taken: it has no rotary positions"):
        check_logps(rank, "gpt2", "sdpa", strictly, "plain")
    check_logps(rank, "lora", "sdpa", by_accelerate, "flat")
    check_references(rank, Path(sys.argv[1]))
    check_agreement(rank)
    check_agreement_in_generation(rank)
    check_half(rank)
    for kind, attention, shard in (
        ("llama", "sdpa", strictly),
        ("qwen2", "sdpa", by_accelerate),
        ("qwen2", "sdpa", kept_whole),
        ("lora", "sdpa", by_accelerate),
    ):
        check_generation(rank, kind, attention, shard)
    check_generation(rank, "gemma2", "eager", strictly)
    print("all equal", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
