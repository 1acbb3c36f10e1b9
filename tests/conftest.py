"""What the tests share: one thread per worker, no hub, no GPU, the embedded policy and a few of its questions."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
if not os.environ.get("CALIBRANT_TEST_GPU"):  # the tests compare with tensors on the CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from hypothesis import HealthCheck, settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.demo import policy_path
from calibrant.tasks.places import TASK

settings.register_profile("no timers", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no timers")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy() -> str:
    return str(policy_path())


@pytest.fixture(scope="session")
def questions() -> Dataset:
    return Dataset.from_list([dict(row) for row in TASK.load("train", 24, 0)])


@pytest.fixture
def talking(policy: str) -> Callable[[], tuple[Any, Any]]:
    """Makes the embedded policy and its tokenizer with the turns and tool calls of Qwen3."""
    return lambda: make_talking(policy)


def make_talking(policy: str) -> tuple[Any, Any]:
    """The embedded policy and its tokenizer with the turns and tool calls of Qwen3."""
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left", model_max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    tokenizer.chat_template = Path(trl.__file__).with_name("chat_templates").joinpath("qwen3.jinja").read_text()
    model = AutoModelForCausalLM.from_pretrained(policy).float()
    model.config.max_position_embeddings = 4096  # prompts with tools are long; TRL drops results beyond
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer
