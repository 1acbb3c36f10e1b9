"""The state of a method between steps, saved in a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from calibrant.errors import CalibrantError

FILE = "method_state.safetensors"


def save(state: Mapping[str, Tensor], folder: Path) -> None:
    """Writes a method's state into a checkpoint; nothing where there is none."""
    if state:
        save_file({name: torch.as_tensor(x).detach().cpu().contiguous() for name, x in state.items()}, folder / FILE)


def load(folder: Path) -> dict[str, Tensor]:
    """The state that a checkpoint holds, empty where it holds none; a CalibrantError if the file is damaged."""
    try:
        return load_file(folder / FILE) if (folder / FILE).is_file() else {}
    except SafetensorError as error:
        raise CalibrantError(f"'{folder / FILE}' is damaged ({error}); resume from an earlier checkpoint") from None
