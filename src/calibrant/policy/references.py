"""Reference copies of a policy: frozen, or an exponential moving average of it."""

import copy
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from calibrant.errors import CalibrantError, reason

FILE = "slow_reference.safetensors"


def frozen(model: nn.Module, *, half: bool = True) -> nn.Module:
    """A copy of a policy without wrappers, in evaluation mode and without gradients; in float32 unless `half`."""
    if any(getattr(p, "ds_id", None) is not None or type(p).__name__ == "DTensor" for p in model.parameters()):
        raise CalibrantError(
            "the method reads a reference copy of the policy, which cannot be taken from parameters that ZeRO-3 or "
            "FSDP has sharded; train with DDP or ZeRO-2, or choose a method without a reference"
        )
    twin: nn.Module = copy.deepcopy(model).eval().requires_grad_(False)
    for module in (twin, getattr(twin, "get_base_model", lambda: twin)()):
        module.__dict__.pop("forward", None)  # a patch of the original, still bound to it
    return twin if half else twin.float()


class SlowReference:
    """An exponential moving average of a policy's parameters, in float32.

    `theta_ref <- decay * theta_ref + (1 - decay) * theta`, every few optimizer steps. In half precision a step of
    0.005 would be lost in rounding.

    Reference: GRPO-CARE's code (a), with a decay of 0.995 every 10 steps.
    """

    def __init__(self, model: nn.Module, decay: float = 0.995, every: int = 10):
        if not 0 <= decay <= 1 or every < 1:
            raise CalibrantError(f"ema_decay {decay} has to lie in [0, 1], and ema_every {every} to be at least 1")
        self.model, self.decay, self.every = frozen(model, half=False), decay, every

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Updates the average where `step` is a multiple of `every`."""
        if step % self.every:
            return
        for average, new in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(new.to(average), 1.0 - self.decay)

    def save(self, folder: Path) -> None:
        """Writes the average beside a checkpoint."""
        save_model(self.model, str(folder / FILE))

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote; a CalibrantError if the file is missing or damaged, or of another model."""
        try:
            load_model(self.model, str(folder / FILE))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CalibrantError(
                f"the checkpoint '{folder}' has no EMA reference of this policy ({reason(error)}); it was written by "
                "another method or is incomplete: start a new run"
            ) from None
