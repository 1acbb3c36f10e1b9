"""References of a policy: what it was before training, or an exponential moving average of it.

There is no second copy of the model: a reference keeps values of the parameters that are trained, which stand in the
policy's place while the reference is computed. With an adapter these are the adapter's parameters alone; and as a new
adapter changes nothing, the policy before training is then the base with the adapter switched off.

Of parameters that FSDP2 shards, each process keeps the values of its own shards. As trainers shard a model after they
were made, these are read later: when the reference is used first, or before a checkpoint is loaded.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from calibrant.errors import CalibrantError, reason
from calibrant.policy.head import is_sharded_otherwise
from calibrant.policy.verify import evaluating

FILE = "slow_reference.safetensors"

Sharding = Literal["", "FSDP1", "FSDP2", "ZeRO-3"]
"""How a model is going to be sharded, if it is."""


class InitialReference:
    """The policy as it is now, before training.

    Attributes:
        is_base: whether the model has a new adapter; the reference is then its base, and there is no snapshot.
        snapshot: values of the trained parameters by name; of a model that FSDP2 is going to shard empty until
            `take_snapshot`.
    """

    def __init__(self, model: nn.Module, sharding: Sharding = ""):
        self.is_base, self.snapshot = _new_adapter(model), dict[str, Tensor]()
        if sharding != "FSDP2":
            self.take_snapshot(model, sharding)

    def take_snapshot(self, model: nn.Module, sharding: Sharding = "") -> None:
        """Copies the values of the model as it is now, unless that is done or not needed."""
        if not (self.is_base or self.snapshot):
            self.snapshot = _trained_values(model, sharding)

    @contextmanager
    def in_place(self, model: PreTrainedModel) -> Iterator[None]:
        """Context manager: `model`, without wrappers, is the reference, in evaluation mode; restored on exit."""
        self.take_snapshot(model)
        with evaluating(model), model.disable_adapter() if self.is_base else _swapped(model, self.snapshot):
            yield


class SlowReference:
    """An exponential moving average of a policy's trained parameters, in float32.

    `theta_ref <- decay * theta_ref + (1 - decay) * theta`, every few optimizer steps. In half precision a step of
    0.005 would be lost in rounding. A policy in half precision reads the average in its own type.

    Reference: GRPO-CARE's code (a), with a decay of 0.995 every 10 steps.

    Attributes:
        average: by name; it starts at a snapshot of the policy, taken as for `InitialReference`.
    """

    def __init__(self, model: nn.Module, decay: float = 0.995, every: int = 10, sharding: Sharding = ""):
        if not 0 <= decay <= 1 or every < 1:
            raise CalibrantError(f"ema_decay {decay} has to lie in [0, 1], and ema_every {every} to be at least 1")
        self.average = dict[str, Tensor]()
        self.decay, self.every = decay, every
        if sharding != "FSDP2":
            self.take_snapshot(model, sharding)

    def take_snapshot(self, model: nn.Module, sharding: Sharding = "") -> None:
        """As `InitialReference.take_snapshot`."""
        if not self.average:
            self.average = {name: value.float() for name, value in _trained_values(model, sharding).items()}

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Updates the average where `step` is a multiple of `every`."""
        if step % self.every:
            return
        self.take_snapshot(model)
        for name, p in _parameters(model, self.average).items():
            average = _local(self.average[name])
            average.lerp_(_local(p).to(average), 1.0 - self.decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """As `InitialReference.in_place`."""
        self.take_snapshot(model)
        with evaluating(model), _swapped(model, self.average):
            yield

    def save(self, folder: Path, write: bool = True) -> None:
        """Writes the average beside a checkpoint, whole; all processes gather it, those that `write` keep it."""
        whole = {}
        for name, value in self.average.items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if write:
                whole[name] = full.cpu().contiguous()
        if write:
            save_file(whole, folder / FILE)

    def load(self, folder: Path, model: nn.Module | None = None) -> None:
        """Reads what `save` wrote; a CalibrantError if the file is missing or damaged, or of another model.

        `model`: the policy; where FSDP2 has sharded it, each process takes its shards of the average. Processes do not
        wait for each other.
        """
        if model is not None:
            self.take_snapshot(model)
        try:
            read = load_file(folder / FILE)
            if {name: x.shape for name, x in read.items()} != {name: x.shape for name, x in self.average.items()}:
                raise KeyError("it holds other parameters")
            for name, value in read.items():
                own = self.average[name]
                if isinstance(own, DTensor):  # each process has the whole value
                    whole = DTensor.from_local(value.to(own.device), own.device_mesh, run_check=False)
                    value = whole.redistribute(placements=own.placements)
                _local(own).copy_(_local(value))
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise CalibrantError(
                f"the checkpoint '{folder}' has no EMA reference of this policy ({reason(error)}); it was written by "
                "another method or is incomplete: start a new run"
            ) from None


def _trained_values(model: nn.Module, sharding: Sharding) -> dict[str, Tensor]:
    if sharding in ("FSDP1", "ZeRO-3") or is_sharded_otherwise(model):
        raise CalibrantError(
            "the method reads a reference of the policy, which cannot be kept of parameters that ZeRO-3 or the first "
            "version of FSDP shards; train with DDP, ZeRO-2 or fsdp_version: 2, or choose a method without a reference"
        )
    return {name: p.detach().clone() for name, p in _parameters(model).items() if p.requires_grad}


def _parameters(model: nn.Module, names: Container[str] | None = None) -> dict[str, nn.Parameter]:
    """Parameters of a model by name; what FSDP2 has gathered of them for a pass is given up first."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return {name: p for name, p in model.named_parameters() if names is None or name in names}


def _local(x: Tensor) -> Tensor:
    """The shard of a tensor that this process holds, in the same memory."""
    return x.to_local().detach() if isinstance(x, DTensor) else x


def _new_adapter(model: nn.Module) -> bool:
    """Whether a model has a LoRA adapter that changes nothing, as its matrices B are 0."""
    if not hasattr(model, "disable_adapter"):
        return False
    matrices = [p for name, p in model.named_parameters() if ".lora_B." in name or ".lora_embedding_B." in name]
    return bool(matrices) and not any(bool(p.any()) for p in matrices)


@contextmanager
def _swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Context manager: parameters have other values, in their own types."""
    parameters = _parameters(model, values)
    own = {name: _local(p).clone() if isinstance(p, DTensor) else p.data for name, p in parameters.items()}
    try:
        _put(model, values)
        yield
    finally:
        _put(model, own)


@torch.no_grad()
def _put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, p in _parameters(model, values).items():
        if isinstance(p, DTensor):
            _local(p).copy_(_local(values[name]))  # FSDP2 gathers from this memory
        else:
            p.data = values[name].to(p.dtype)
    torch.clear_autocast_cache()  # of casts of the values before
