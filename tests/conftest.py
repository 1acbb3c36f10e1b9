"""What the tests share: one thread a worker, no hub, the embedded policy and a few of its questions."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch
from datasets import Dataset

from calibrant.demo import policy_path
from calibrant.tasks.places import TASK


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy() -> str:
    return str(policy_path())


@pytest.fixture(scope="session")
def questions() -> Dataset:
    return Dataset.from_list([dict(row) for row in TASK.load("train", 24, 0)])
