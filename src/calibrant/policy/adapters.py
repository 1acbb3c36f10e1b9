"""Adapters: new ones on a base model, and folders of saved ones. The package `peft` is needed for them alone."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from calibrant.errors import CalibrantError, reason, shortened
from calibrant.files import json_object
from calibrant.model_options import AdapterOptions, ModelOptions

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(path: Path) -> bool:
    """Whether a path is a folder that an adapter was saved into, without its base."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The base model of an adapter: a folder or a hub name, as its adapter_config.json says."""
    check_installed(f"'{folder}' is an adapter")
    base = (json_object((folder / CONFIG).read_bytes()) or {}).get("base_model_name_or_path")
    if not isinstance(base, str) or not base or not (folder / WEIGHTS).is_file():
        raise CalibrantError(
            f"the adapter '{folder}' is damaged: it needs {WEIGHTS}, and base_model_name_or_path in {CONFIG}; save it "
            "anew with save_pretrained"
        )
    if Path(base).is_absolute() and not Path(base).exists():
        raise CalibrantError(
            f"the adapter '{folder}' belongs to the base model '{base}', which is not there; set "
            f"base_model_name_or_path in its {CONFIG} to where it is"
        )
    return base


def check_installed(why: str) -> None:
    """Raises a CalibrantError if `peft` is not installed; `why` begins the sentence."""
    if find_spec("peft") is None:
        raise CalibrantError(f"{why}, which needs a package that is not installed; pip install 'calibrant[peft]'")


def lora_config(options: AdapterOptions) -> Any:
    """The `peft.LoraConfig` of the options."""
    check_installed("option 'use_peft' is true")
    from peft import LoraConfig

    modules = options.lora_target_modules or ("all-linear",)
    pattern = len(modules) == 1 and not re.fullmatch(r"[\w.]+", modules[0])  # which peft takes as one text
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=modules[0] if pattern else list(modules),
    )


def check_trainable(options: ModelOptions, model: PreTrainedModel) -> None:
    """Raises a CalibrantError for weights in 4 bits without an adapter: they have no gradients."""
    if options.load_in_4bit and not has_adapter(model):
        raise CalibrantError("weights in 4 bits have no gradients and cannot be trained; give --use-peft too")


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether a model has an adapter."""
    return hasattr(model, "disable_adapter")


def with_new_adapter(model: PreTrainedModel, options: AdapterOptions, seed: int = 0) -> PreTrainedModel:
    """The model with a new LoRA adapter, which alone is trained; it changes nothing yet."""
    if has_adapter(model):
        raise CalibrantError(
            "the model is an adapter, and 'use_peft' adds one to a whole model; leave out --use-peft to go on with it"
        )
    config = lora_config(options)
    from peft import get_peft_model

    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        raise CalibrantError(f"option 'lora_target_modules' does not fit the model: {reason(error)}") from None


def with_saved_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with the adapter of a folder, which alone is trained; without its values on the meta device."""
    from peft import PeftConfig, PeftModel, get_peft_model

    try:
        if model.device.type == "meta":
            adapted = get_peft_model(model, PeftConfig.from_pretrained(str(folder), inference_mode=False))
        else:
            device = str(model.device)
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True, torch_device=device)
        lost = _not_in_file(adapted, folder / WEIGHTS)
    except Exception as error:  # peft, safetensors and torch raise anything from KeyError to their own
        raise CalibrantError(f"it does not fit its base ({reason(error)})") from None
    if lost:
        raise CalibrantError(
            f"it lacks weights that its {CONFIG} asks for, or has them in another shape ({shortened(lost)}); give it "
            "its own base, or save it anew"
        )
    return adapted


def _not_in_file(model: PreTrainedModel, file: Path) -> list[str]:
    from peft import get_peft_model_state_dict

    with safe_open(file, "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    return [name for name, value in wanted.items() if shapes.get(name) != list(value.shape)]
