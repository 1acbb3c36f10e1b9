"""Whether a run is possible with its options: what they need, and which do not go together, before weights are read."""

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames
from trl.import_utils import is_vllm_available

from calibrant.errors import CalibrantError, nearest, reason
from calibrant.policy.adapters import check_trainable, has_adapter, with_new_adapter
from calibrant.policy.block import find_blocks
from calibrant.policy.quantised import quantization_config
from calibrant.train.settings import TrainSettings
from calibrant.trl.head_gradients import readable_head


def check_possible(settings: TrainSettings, shape: PreTrainedModel, inputs: Collection[str]) -> None:
    """Raises a CalibrantError for options that cannot be trained with.

    `shape` is the model on the meta device, `inputs` are those that the method names.
    """
    _check_optimizer(settings.optim)
    _check_vllm(settings)
    quantization_config(settings)
    if settings.use_peft:
        shape = with_new_adapter(shape, settings)
    if "head_gram" in inputs:
        readable_head(shape)
    if "block_gram" in inputs and not any(p.requires_grad for p in find_blocks(shape)[-1].parameters()):
        raise CalibrantError(
            "the input 'block_gram' is read from what is trained of the last block, which is nothing; give "
            "--lora-target-modules that are in it"
        )
    check_trainable(settings, shape)
    if has_adapter(shape):
        return
    if settings.merge:
        raise CalibrantError("option 'merge' does nothing without an adapter; give --use-peft too")
    if shape.dtype == torch.float16:
        raise CalibrantError(
            f"the weights of '{settings.model}' would be trained in float16, in which AdamW divides by 0; give --dtype "
            "float32 or bfloat16"
        )


def _check_vllm(settings: TrainSettings) -> None:
    if not settings.use_vllm:
        return
    if not is_vllm_available():
        raise CalibrantError("option 'use_vllm' needs vLLM, which is not installed; pip install 'trl[vllm]'")
    if not torch.accelerator.is_available():
        raise CalibrantError("option 'use_vllm' needs a GPU, on which TRL sends vLLM the new weights; leave it out")
    by_token = settings.vllm_importance_sampling_mode.startswith("token_")
    if settings.loss_type == "vespo" and settings.vllm_importance_sampling_correction and not by_token:
        raise CalibrantError(
            "the loss 'vespo' corrects per token with vLLM; give --vllm-importance-sampling-mode token_truncate"
        )


def _check_optimizer(name: str) -> None:
    names = [known.value for known in OptimizerNames]
    if name not in names:
        raise CalibrantError(f"option 'optim' is '{name}'{nearest(name, names)}; it is one of {', '.join(names)}")
    arguments = TrainingArguments(optim=name, use_cpu=not torch.accelerator.is_available(), report_to="none")
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, nn.Linear(1, 1))
    except Exception as error:  # ImportError or ValueError, or whatever a package raises that it imports
        raise CalibrantError(f"option 'optim' is '{name}', which cannot be used here: {reason(error)}") from None
