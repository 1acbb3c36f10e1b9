"""What several benchmarks share: rows of a file, times, the machine, and a vLLM on the same cores."""

import gzip
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def json_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file, perhaps compressed with gzip."""
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def machine(device: str = "cpu") -> str:
    """The name of a GPU, or of the kind of processor."""
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def vllm_environment() -> dict[str, str]:
    """Variables of a process that runs vLLM with as many threads as this one, without this one's packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {"VLLM_CPU_KVCACHE_SPACE": "2"} | environment  # GiB


def seconds(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds by the clock, of the processor, and the result."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - clock, time.process_time() - processor, result
