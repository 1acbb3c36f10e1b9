"""Passes captured as CUDA graphs, on a GPU: `CALIBRANT_TEST_GPU=1 pytest tests/policy/test_gpu.py`."""

import pytest
import torch
from small_models import build
from test_group_attention import prompts, sampled

from calibrant.policy.prefill import GROUPED, shared_prefill
from calibrant.policy.replays import LAUNCHES, REPLAYED
from calibrant.policy.verify import record_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def on_gpu(kind="llama"):
    return build(kind).to("cuda"), [x.to("cuda") for x in prompts()]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mistral", "gemma3"])
def test_the_samples_of_generate(kind):
    model, batch = on_gpu(kind)
    plain = sampled(model, *batch)
    for _ in range(3):  # captures follow each other in the same memory
        with shared_prefill(model):
            assert torch.equal(sampled(model, *batch), plain)
    assert {GROUPED, REPLAYED} <= record_of(model).verified and not record_of(model).failed


def test_a_pass_that_waits_for_the_gpu_is_launched():
    model, batch = on_gpu()
    plain = sampled(model, *batch)
    handle = model.model.layers[1].mlp.register_forward_hook(lambda _m, _i, output: output.sum().item() and None)
    with pytest.warns(UserWarning, match=LAUNCHES), shared_prefill(model):
        assert torch.equal(sampled(model, *batch), plain)
    handle.remove()
    other, _ = on_gpu()  # which is captured after the failure
    with shared_prefill(other):
        assert torch.equal(sampled(other, *batch), plain)
    assert REPLAYED in record_of(other).verified
