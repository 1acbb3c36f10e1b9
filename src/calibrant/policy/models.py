"""Policies by name: an embedded one, a local folder, or a hub name."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from calibrant import hub
from calibrant.demo import POLICIES
from calibrant.errors import CalibrantError, shortened


def locate(model: str) -> str:
    """The folder or hub name that a model option means; a run directory means its trained policy.

    Raises:
        CalibrantError: an existing path that holds no model.
    """
    if model in POLICIES:
        return str(POLICIES[model])
    path = Path(model)
    if not path.exists():
        return model
    if (path / "config.yaml").exists():
        path = path / "model"
        if not path.exists():
            raise CalibrantError(f"the run '{model}' has no trained model yet; continue it with --resume {model}")
    if not (path / "config.json").is_file():
        raise CalibrantError(f"'{model}' is not a model (no config.json there); give a folder saved by save_pretrained")
    return str(path)


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the left as generation needs it."""
    tokenizer = _load(AutoTokenizer, model, trust_remote_code=trust_remote_code, padding_side="left")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CalibrantError(f"the model '{model}' has no tokenizer; save its tokenizer into the same folder")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(model: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model, from safetensors only: on an accelerator in its own type, on a CPU in float32.

    Raises:
        CalibrantError: it is not there, not a model, or not whole.
    """
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    dtype = torch.float32 if device.type == "cpu" else "auto"
    policy = _whole(model, trust_remote_code=trust_remote_code, dtype=dtype).to(device)
    broken = [name for name, weight in policy.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise CalibrantError(
            f"the model '{model}' has NaN or infinite weights ({shortened(broken)}); take an earlier checkpoint"
        )
    return policy


def check_policy(model: str, *, trust_remote_code: bool = False) -> None:
    """Raises what `load_policy` would, as far as it shows without reading the weights."""
    _whole(model, trust_remote_code=trust_remote_code, device_map="meta")


def _whole(model: str, **options: Any) -> PreTrainedModel:
    """A policy whose weights were all in its files: transformers makes up those that are not."""
    policy: PreTrainedModel
    policy, report = _load(
        AutoModelForCausalLM,
        model,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    lost = [*sorted(report["missing_keys"]), *sorted(name for name, *_ in report["mismatched_keys"])]
    if lost:
        raise CalibrantError(
            f"the model '{model}' lacks weights that its config.json asks for, or has them in another shape "
            f"({shortened(lost)}); give --model a folder saved by save_pretrained"
        )
    return policy


def _load(loader: Any, model: str, **options: Any) -> Any:
    name = locate(model)
    local = Path(name).exists()
    try:
        return loader.from_pretrained(name, local_files_only=local or not hub.reachable(), **options)
    except Exception as error:  # transformers, safetensors and the hub raise anything from KeyError to their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CalibrantError(
            f"the model '{model}' {_where(local)} ({reason}); give a folder saved by save_pretrained, or 'demo'"
        ) from None


def _where(local: bool) -> str:
    if local:
        return "is a folder that cannot be loaded"
    if hub.reachable():
        return "could not be had from the hub"
    return "is no folder, is not in the hub's cache, and the hub cannot be reached"


def quiet_loading() -> None:
    """Switches off the bars that transformers shows while it reads weights; those of downloads stay."""
    logging.disable_progress_bar()


def as_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A task's prompt as the model expects it: one user turn where there is a chat template, plain text else."""
    return [{"role": "user", "content": text}] if tokenizer.chat_template else text
