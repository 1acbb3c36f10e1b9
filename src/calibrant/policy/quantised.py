"""Weights in four bits, by the package `bitsandbytes`."""

from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig

from calibrant.errors import CalibrantError
from calibrant.model_options import ModelOptions


def quantization_config(options: ModelOptions) -> BitsAndBytesConfig | None:
    """How weights are quantised, None if they are not; a CalibrantError if that is not possible here.

    As in TRL's command line: NF4, computed in the dtype of the rest of the weights, bfloat16 unless another is given.
    """
    if not options.load_in_4bit:
        return None
    if find_spec("bitsandbytes") is None:
        raise CalibrantError(
            "option 'load_in_4bit' needs a package that is not installed; pip install 'bitsandbytes>=0.46.1'"
        )
    if not torch.accelerator.is_available():
        raise CalibrantError("option 'load_in_4bit' needs a GPU, and there is none; leave it out")
    dtype = weights_dtype(options, "bfloat16")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")


def weights_dtype(options: ModelOptions, default: str) -> str:
    """The dtype of weights that are not quantised; `default` where none is given, with 4 bits bfloat16."""
    return options.dtype or ("bfloat16" if options.load_in_4bit else default)
