"""What of verl and torch assumes an accelerator, replaced."""

from typing import Any

import torch
import torch.distributed.fsdp
from verl.workers.rollout import base, replica

BACKEND = "transformers_cpu"


class PageableOffload(torch.distributed.fsdp.CPUOffloadPolicy):
    """verl offloads the reference to pinned memory, which needs an accelerator."""

    def __init__(self, pin_memory: bool = False):
        super().__init__(pin_memory=False)


def apply() -> None:
    base._ROLLOUT_REGISTRY[(BACKEND, "async")] = "cpu_verl.rollout.ServerAdapter"
    replica.RolloutReplicaRegistry.register(BACKEND, _replica)
    torch.distributed.fsdp.CPUOffloadPolicy = PageableOffload
    initialise = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, *arguments: Any, **keywords: Any) -> None:
        """verl asks for one backend per device type, and names the CPU twice here."""
        initialise("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *arguments, **keywords)

    torch.distributed.init_process_group = init_process_group


def _replica() -> type:
    from cpu_verl.rollout import Replica

    return Replica
