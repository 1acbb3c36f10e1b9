"""Fixtures of the tests of gradients."""

import copy

import pytest
from builders_gradients import build


@pytest.fixture(scope="module")
def models():
    return {name: build(name) for name in ("qwen2", "llama", "gpt2", "gemma3", "qwen3")}


@pytest.fixture
def qwen2(models):
    return copy.deepcopy(models["qwen2"]).double()
