"""References of a policy: what it was before training, or an exponential moving average of it.

There is no second copy of the model: a reference keeps values of the parameters that are trained, which stand in the
policy's place while the reference is computed. With an adapter these are the adapter's parameters alone; and as a new
adapter changes nothing, the policy before training is then the base with the adapter switched off.

Where FSDP2 spreads parameters over processes, each keeps the values of its own part. As trainers shard a model after
they were made, these are taken later: when the reference is used first, or before a checkpoint is loaded.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from calibrant.errors import CalibrantError, reason
from calibrant.policy.verify import evaluating

FILE = "slow_reference.safetensors"


class InitialReference:
    """The policy as it is now, before training.

    Attributes:
        values: those of the trained parameters, by name; None: the adapter is switched off instead, or `keep` is due.

    `fsdp` is the version of FSDP that is going to shard the model, 0 if none is.
    """

    def __init__(self, model: nn.Module, fsdp: int = 0):
        self._switches = _new_adapter(model)
        self.values = None if self._switches or fsdp == 2 else _trained_values(model, fsdp)

    def keep(self, model: nn.Module) -> None:
        """Keeps the values of a model that FSDP2 has sharded, if there are none yet."""
        if self.values is None and not self._switches:
            self.values = _trained_values(model)

    @contextmanager
    def in_place(self, model: PreTrainedModel) -> Iterator[None]:
        """Context manager: `model`, without wrappers, is the reference, in evaluation mode; restored on exit."""
        self.keep(model)
        with evaluating(model), model.disable_adapter() if self.values is None else _swapped(model, self.values):
            yield


class SlowReference:
    """An exponential moving average of a policy's trained parameters, in float32.

    `theta_ref <- decay * theta_ref + (1 - decay) * theta`, every few optimizer steps. In half precision a step of
    0.005 would be lost in rounding. A policy in half precision reads the average in its own type.

    Reference: GRPO-CARE's code (a), with a decay of 0.995 every 10 steps.

    `fsdp` as for `InitialReference`; `values` are empty until `keep`.
    """

    def __init__(self, model: nn.Module, decay: float = 0.995, every: int = 10, fsdp: int = 0):
        if not 0 <= decay <= 1 or every < 1:
            raise CalibrantError(f"ema_decay {decay} has to lie in [0, 1], and ema_every {every} to be at least 1")
        self.values: dict[str, Tensor] = {}
        self.decay, self.every = decay, every
        if fsdp != 2:
            self.keep(model, fsdp)

    def keep(self, model: nn.Module, fsdp: int = 0) -> None:
        """As `InitialReference.keep`."""
        self.values = self.values or {name: value.float() for name, value in _trained_values(model, fsdp).items()}

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Updates the average where `step` is a multiple of `every`."""
        if step % self.every:
            return
        self.keep(model)
        for name, p in _parameters(model, self.values).items():
            average = _local(self.values[name])
            average.lerp_(_local(p).to(average), 1.0 - self.decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """As `InitialReference.in_place`."""
        self.keep(model)
        with evaluating(model), _swapped(model, self.values):
            yield

    def save(self, folder: Path, write: bool = True) -> None:
        """Writes the average beside a checkpoint, whole; all processes gather it, those that `write` keep it."""
        whole = {}
        for name, value in self.values.items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if write:
                whole[name] = full.cpu().contiguous()
        if write:
            save_file(whole, folder / FILE)

    def load(self, folder: Path, model: nn.Module | None = None) -> None:
        """Reads what `save` wrote; a CalibrantError if the file is missing or damaged, or of another model.

        `model`: the policy; its parts are taken of the average where FSDP2 has sharded it.
        """
        if model is not None:
            self.keep(model)
        try:
            read = load_file(folder / FILE)
            if {name: x.shape for name, x in read.items()} != {name: x.shape for name, x in self.values.items()}:
                raise KeyError("it holds other parameters")
            for name, value in read.items():
                own = self.values[name]
                if isinstance(own, DTensor):
                    value = distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
                _local(own).copy_(_local(value))
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise CalibrantError(
                f"the checkpoint '{folder}' has no EMA reference of this policy ({reason(error)}); it was written by "
                "another method or is incomplete: start a new run"
            ) from None


def _trained_values(model: nn.Module, fsdp: int = 0) -> dict[str, Tensor]:
    flat = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if fsdp == 1 or flat or any(hasattr(p, "ds_id") for p in model.parameters()):
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
    """The part of a tensor that this process holds, in the same memory."""
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
