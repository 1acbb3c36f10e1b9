"""Classifiers of natural language inference: loading, the order of labels, and the maximum length."""

import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from calibrant import hub
from calibrant.errors import CalibrantError, reason
from calibrant.statistics.counted import check_count


@lru_cache(maxsize=2)
def load_classifier(
    name: str, device: str | torch.device | None, dtype: torch.dtype | str, trust_remote_code: bool
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model in evaluation mode."""
    local = Path(name).exists()
    options = {"local_files_only": local or not hub.reachable(), "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        model = model.to(device or torch.accelerator.current_accelerator() or "cpu").eval()
    except Exception as error:  # transformers, safetensors and the hub raise many types
        hubless = "" if local or hub.reachable() else "; it is no folder, and the hub cannot be reached"
        raise CalibrantError(
            f"cannot load the entailment model '{name}' ({reason(error)}){hubless}; give a folder that holds one with "
            "its tokenizer, saved by save_pretrained as safetensors"
        ) from None
    if info["missing_keys"]:
        raise CalibrantError(
            f"'{name}' was not trained to classify: its weights lack '{min(info['missing_keys'])}'; give a model "
            "fine-tuned on natural language inference"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model


def label_columns(id2label: Mapping[int, str], name: str) -> list[int]:
    """Indices of contradiction, neutral and entailment among a model's labels; past the end for a missing label."""
    labels = {str(label).strip().lower(): int(index) for index, label in id2label.items()}
    count = len(id2label)
    if count == 2 and "entailment" in labels:
        return [2, 1 - labels["entailment"], labels["entailment"]]
    indices = [labels.get(label) for label in ("contradiction", "neutral", "entailment")]
    if count == 3 and indices.count(None) <= 1:
        third = 3 - sum(index for index in indices if index is not None)
        return [third if index is None else index for index in indices]
    if count != 3 or indices not in ([None, None, None], [0, None, None], [None, 1, None]):
        raise CalibrantError(
            f"the labels of '{name}' are {list(id2label.values())}, not those of entailment; expected contradiction, "
            "neutral and entailment, or entailment and one other"
        )
    warnings.warn(
        f"'{name}' has no label 'entailment' but {list(id2label.values())}; they are read as contradiction, neutral "
        "and entailment, in this order: index 2 is entailment",
        stacklevel=3,
    )
    return [0, 1, 2]


def maximum_length(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, requested: int | None) -> int | None:
    """Maximum tokens per pair: `requested`, or what tokenizer and model allow; None without a limit."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or torch.inf]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - unused)
    limit = min(limits)
    if requested is None:
        return int(limit) if limit < 1e9 else None
    check_count("entailment", tokenizer.num_special_tokens_to_add(pair=True) + 2, max_length=requested)
    if requested > limit:
        raise CalibrantError(f"entailment: max_length is {requested}, but the model reads {int(limit)} tokens")
    return requested
