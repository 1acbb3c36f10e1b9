"""References of a policy: what it was before training, or an exponential moving average of it.

There is no second copy of the model: a reference keeps values of the parameters that are trained, which stand in the
policy's place while the reference is computed. With an adapter these are the adapter's parameters alone; and as a new
adapter changes nothing, the policy before training is then the base with the adapter switched off.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibrant.errors import CalibrantError, reason
from calibrant.policy.verify import evaluating

FILE = "slow_reference.safetensors"


class InitialReference:
    """The policy as it is now, before training.

    Attributes:
        values: those of the trained parameters, by name; None: the adapter is switched off instead.
    """

    def __init__(self, model: nn.Module):
        self.values = None if _new_adapter(model) else _trained_values(model)

    @contextmanager
    def in_place(self, model: PreTrainedModel) -> Iterator[None]:
        """Context manager: `model`, without wrappers, is the reference, in evaluation mode; restored on exit."""
        with evaluating(model), model.disable_adapter() if self.values is None else _swapped(model, self.values):
            yield


class SlowReference:
    """An exponential moving average of a policy's trained parameters, in float32.

    `theta_ref <- decay * theta_ref + (1 - decay) * theta`, every few optimizer steps. In half precision a step of
    0.005 would be lost in rounding. A policy in half precision reads the average in its own type.

    Reference: GRPO-CARE's code (a), with a decay of 0.995 every 10 steps.
    """

    def __init__(self, model: nn.Module, decay: float = 0.995, every: int = 10):
        if not 0 <= decay <= 1 or every < 1:
            raise CalibrantError(f"ema_decay {decay} has to lie in [0, 1], and ema_every {every} to be at least 1")
        self.values = {name: value.float() for name, value in _trained_values(model).items()}
        self.decay, self.every = decay, every

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Updates the average where `step` is a multiple of `every`."""
        if step % self.every:
            return
        parameters = dict(model.named_parameters())
        for name, average in self.values.items():
            average.lerp_(parameters[name].to(average), 1.0 - self.decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """As `InitialReference.in_place`."""
        with evaluating(model), _swapped(model, self.values):
            yield

    def save(self, folder: Path) -> None:
        """Writes the average beside a checkpoint."""
        save_file({name: value.contiguous() for name, value in self.values.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote; a CalibrantError if the file is missing or damaged, or of another model."""
        try:
            read = load_file(folder / FILE)
            if {name: x.shape for name, x in read.items()} != {name: x.shape for name, x in self.values.items()}:
                raise KeyError("it holds other parameters")
            for name, value in read.items():
                self.values[name].copy_(value)
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise CalibrantError(
                f"the checkpoint '{folder}' has no EMA reference of this policy ({reason(error)}); it was written by "
                "another method or is incomplete: start a new run"
            ) from None


def _trained_values(model: nn.Module) -> dict[str, Tensor]:
    sharded = any(getattr(p, "ds_id", None) is not None or type(p).__name__ == "DTensor" for p in model.parameters())
    if sharded or parse_flag_from_env("ACCELERATE_USE_FSDP"):  # which shards after the trainer is made
        raise CalibrantError(
            "the method reads a reference of the policy, which cannot be kept of parameters that ZeRO-3 or FSDP "
            "shards; train with DDP or ZeRO-2, or choose a method without a reference"
        )
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def _new_adapter(model: nn.Module) -> bool:
    """Whether a model has a LoRA adapter that changes nothing, as its matrices B are 0."""
    if not hasattr(model, "disable_adapter"):
        return False
    matrices = [p for name, p in model.named_parameters() if ".lora_B." in name or ".lora_embedding_B." in name]
    return bool(matrices) and not any(bool(p.any()) for p in matrices)


@contextmanager
def _swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Context manager: parameters have other values, in their own types."""
    parameters = {name: p for name, p in model.named_parameters() if name in values}
    own = {name: p.data for name, p in parameters.items()}
    try:
        for name, p in parameters.items():
            p.data = values[name].to(p.dtype)
        torch.clear_autocast_cache()  # of casts of the policy's own values
        yield
    finally:
        for name, p in parameters.items():
            p.data = own[name]
        torch.clear_autocast_cache()
