"""Policies by name: an embedded one, `smollm2`, a local folder or GGUF file, or a hub name."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from calibrant import hub
from calibrant.demo import POLICIES
from calibrant.errors import CalibrantError, reason, shortened
from calibrant.files import json_object
from calibrant.model_options import ModelOptions
from calibrant.policy.adapters import base_of, is_adapter, with_saved_adapter
from calibrant.policy.gguf import SMOLLM2, converted, gguf_file, smollm2_file
from calibrant.policy.quantised import quantization_config, weights_dtype

DEFAULTS = ModelOptions()


def locate(model: str) -> str:
    """The folder or hub name that a model option means; a run directory means its trained policy."""
    if model in POLICIES:
        return str(POLICIES[model])
    if model == SMOLLM2:
        return str(converted(smollm2_file()))
    path = Path(model)
    if not path.exists():
        return model
    if file := gguf_file(path):
        return str(converted(file))
    if (path / "config.yaml").exists():
        path = path / "model"
        if not path.exists():
            raise CalibrantError(f"the run '{model}' has no trained model yet; continue it with --resume {model}")
    if is_adapter(path):
        return str(path)
    if not (path / "config.json").is_file():
        raise CalibrantError(f"'{model}' is not a model (no config.json there); give a folder saved by save_pretrained")
    settings = path / "generation_config.json"  # transformers makes up its own where it cannot read this one
    if settings.exists() and json_object(settings.read_bytes()) is None:
        raise CalibrantError(f"'{settings}' is damaged; save the model anew, or delete that file to take the defaults")
    return str(path)


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the left as generation needs it."""
    tokenizer: PreTrainedTokenizerBase
    folder = Path(locate(model))
    own = not is_adapter(folder) or (folder / "tokenizer_config.json").is_file()
    source = model if own else base_of(folder)
    tokenizer = _load(AutoTokenizer, source, trust_remote_code=trust_remote_code, padding_side="left")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CalibrantError(f"the model '{model}' has no tokenizer; save its tokenizer into the same folder")
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise CalibrantError(
            f"the tokenizer of '{model}' has neither a padding nor an EOS token; set eos_token in its "
            "tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def default_dtype() -> str:
    """The dtype of weights that are not trained, where none is asked for."""
    return "auto" if torch.accelerator.is_available() else "float32"


def load_policy(model: str, options: ModelOptions = DEFAULTS) -> PreTrainedModel:
    """A causal language model, from safetensors only; without `dtype` float32 on a CPU, else that of its files.

    An adapter is loaded on its base, and alone requires gradients.
    """
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    policy = _on_device(model, options, device, weights_dtype(options, default_dtype()))
    _refuse(model, (name for name, weight in policy.named_parameters() if not weight.isfinite().all()))
    return policy


def merged_policy(adapter: str, options: ModelOptions = DEFAULTS) -> PreTrainedModel:
    """The base of an adapter, not quantised and on the CPU, with the adapter added to its weights."""
    whole = replace(options, load_in_4bit=False)
    policy = _on_device(adapter, whole, torch.device("cpu"), weights_dtype(options, "float32"))
    return policy.merge_and_unload()


def load_model(model: str, options: ModelOptions = DEFAULTS) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A policy and its tokenizer."""
    tokenizer = load_tokenizer(model, trust_remote_code=options.trust_remote_code)
    policy = load_policy(model, options)
    check_vocabulary(model, policy, tokenizer)
    return policy, tokenizer


def check_model(model: str, options: ModelOptions = DEFAULTS) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that can be trained, on the meta device (shapes without weights), and its tokenizer."""
    tokenizer = load_tokenizer(model, trust_remote_code=options.trust_remote_code)
    policy = _on_device(model, options, torch.device("meta"), weights_dtype(options, "float32"))
    check_vocabulary(model, policy, tokenizer)
    if tokenizer.eos_token is None:
        raise CalibrantError(
            f"the tokenizer of '{model}' has no EOS token, so that no answer would end; set eos_token in its "
            "tokenizer_config.json"
        )
    return policy, tokenizer


def check_weights(model: str) -> None:
    """Reads the weights of a local model once; those of the hub are checked when they are loaded."""
    folders = [Path(locate(model))]
    if is_adapter(folders[0]):
        folders.append(Path(locate(base_of(folders[0]))))
    for file in (file for folder in folders for file in folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            tensors = ((name, weights.get_tensor(name)) for name in weights.keys())  # noqa: SIM118
            _refuse(model, (name for name, tensor in tensors if not tensor.float().isfinite().all()))


def check_vocabulary(model: str, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a CalibrantError for tokens without a row in the model's embedding.

    Tokens that were added and are in no prompt may lie beyond them: Gemma 3's text models have one for images.
    """
    size = policy.config.get_text_config().vocab_size
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    unused = {t for t in tokenizer.get_added_vocab() if t not in special and t not in str(tokenizer.chat_template)}
    beyond = sorted(token for token, index in tokenizer.get_vocab().items() if index >= size and token not in unused)
    if beyond:
        raise CalibrantError(
            f"the tokenizer of '{model}' has tokens beyond the {size} of the model's embedding ({shortened(beyond)}); "
            "save the model's own tokenizer beside it, or resize the embedding"
        )


def _refuse(model: str, not_finite: Iterable[str]) -> None:
    if broken := list(not_finite):
        raise CalibrantError(
            f"the model '{model}' has NaN or infinite weights ({shortened(broken)}); take an earlier checkpoint"
        )


def _on_device(model: str, options: ModelOptions, device: torch.device, dtype: str) -> PreTrainedModel:
    """A policy, or an adapter on its base; on the meta device neither is quantised."""
    folder = Path(locate(model))
    if is_adapter(folder):
        base = base_of(folder)
        try:
            return with_saved_adapter(_on_device(base, options, device, dtype), folder)
        except CalibrantError as error:
            raise CalibrantError(f"the adapter '{model}' cannot be used: {error}") from None
    if device.type == "meta":
        return _whole(model, options, dtype=dtype, device_map="meta")
    if (quantization := quantization_config(options)) is None:
        return _whole(model, options, dtype=dtype).to(device)
    return _whole(model, options, dtype=dtype, device_map={"": device}, quantization_config=quantization)


def _whole(model: str, options: ModelOptions, **how: object) -> PreTrainedModel:
    """A policy whose weights were all in its files: transformers makes up those that are not."""
    policy: PreTrainedModel
    policy, report = _load(
        AutoModelForCausalLM,
        model,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=options.trust_remote_code,
        attn_implementation=options.attn_implementation,
        **how,
    )
    if getattr(policy, "_hf_peft_config_loaded", False):
        raise CalibrantError(f"'{model}' is an adapter on the hub; download it, and give its folder")
    lost = [*sorted(report["missing_keys"]), *sorted(name for name, *_ in report["mismatched_keys"])]
    if lost:
        raise CalibrantError(
            f"the model '{model}' lacks weights that its config.json asks for, or has them in another shape "
            f"({shortened(lost)}); give --model a folder saved by save_pretrained"
        )
    return policy


def _load(loader: type[AutoModelForCausalLM | AutoTokenizer], model: str, **options: object) -> Any:
    name = locate(model)
    local = Path(name).exists()
    if not local and (Path(name).is_absolute() or name.startswith(".")):  # the hub has no such names
        raise CalibrantError(
            f"the model '{model}' does not exist; give a folder saved by save_pretrained, or a hub name"
        )
    try:
        return loader.from_pretrained(name, local_files_only=local or not hub.reachable(), **options)
    except Exception as error:  # transformers, safetensors and the hub raise anything from KeyError to their own
        raise CalibrantError(f"the model '{model}' {_where(local)} ({reason(error)}); {_remedy(options)}") from None


def _remedy(options: Mapping[str, object]) -> str:
    if attention := options.get("attn_implementation"):
        return f"try it without attn_implementation = '{attention}'"
    return "give a folder saved by save_pretrained, or 'demo'"


def _where(local: bool) -> str:
    if local:
        return "is a folder that cannot be loaded"
    if hub.reachable():
        return "could not be had from the hub"
    return "is no folder, is not in the hub's cache, and the hub cannot be reached"


def quiet_loading() -> None:
    """Switches off the bars that transformers shows while it reads weights; those of downloads stay."""
    logging.disable_progress_bar()
