"""Options of the model, of an adapter and of vLLM, under the names of TRL's command line."""

from dataclasses import dataclass, fields

from calibrant.errors import CalibrantError
from calibrant.options import COUNT, POSITIVE, SHARE, Settings, option


def refuse_without(settings: object, switch: str, group: type[Settings]) -> None:
    """Raises CalibrantError where a boolean option is off, and another of its group is not the default."""
    if getattr(settings, switch):
        return
    for f in fields(group):
        if getattr(settings, f.name) != f.default:
            raise CalibrantError(
                f"option '{f.name}' does nothing without '{switch}'; give --{switch.replace('_', '-')} too"
            )


@dataclass(frozen=True)
class ModelOptions(Settings):
    """Model."""

    trust_remote_code: bool = option(False, "whether to run Python code that ships with a hub model")
    dtype: str | None = option(
        None,
        "dtype of the weights; auto: that of the model's files",
        choices=("auto", "bfloat16", "float16", "float32"),
        shown="float32 in training and on a CPU, else auto",
    )
    load_in_4bit: bool = option(False, "whether to read the weights in 4 bits (NF4, by bitsandbytes; needs a GPU)")
    attn_implementation: str | None = option(
        None, "attention: eager, sdpa, flash_attention_2, or a kernel of the hub", shown="the model's", metavar="NAME"
    )


@dataclass(frozen=True)
class AdapterOptions(Settings):
    """Adapter."""

    use_peft: bool = option(False, "whether to train a LoRA adapter in place of the model's own weights")
    lora_r: int = option(16, "rank of the adapter", limit=COUNT)
    lora_alpha: int = option(32, "scale of the adapter, whose output is multiplied by alpha / r", limit=COUNT)
    lora_dropout: float = option(0.0, "dropout before the adapter; also active while sampling", limit=SHARE)
    lora_target_modules: tuple[str, ...] | None = option(
        None, "names of the layers that get an adapter", shown="all linear layers but the output head", metavar="NAME"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_without(self, "use_peft", AdapterOptions)


def vllm_memory() -> float:
    """Memory of vLLM."""
    return option(0.3, "share of GPU memory for vLLM, where it is not a server", limit=SHARE)


@dataclass(frozen=True)
class VllmOptions(Settings):
    """Generation with vLLM, as in TRL."""

    use_vllm: bool = option(False, "whether to generate with vLLM (needs a GPU)")
    vllm_mode: str = option(
        "colocate",
        "vLLM in the training process, on the same GPUs, or as a server (`vllm serve`)",
        choices=("colocate", "server"),
    )
    vllm_server_base_url: str | None = option(None, "URL of the server", shown="from host and port", metavar="URL")
    vllm_server_host: str = option("0.0.0.0", "host of the server")
    vllm_server_port: int = option(8000, "port of the server", limit=COUNT)
    vllm_server_timeout: float = option(240.0, "seconds to wait for the server", limit=POSITIVE)
    vllm_group_port: int = option(51216, "port over which the server gets new weights", limit=COUNT)
    vllm_gpu_memory_utilization: float = vllm_memory()
    vllm_tensor_parallel_size: int = option(1, "GPUs per colocated vLLM", limit=COUNT)
    vllm_max_model_length: int | None = option(
        None, "maximum length of prompt and completion for colocated vLLM", shown="the model's", limit=COUNT
    )
    vllm_enable_sleep_mode: bool = option(False, "whether colocated vLLM leaves the GPU during the update")
    vllm_importance_sampling_correction: bool = option(
        True, "whether to correct for the difference between vLLM's log-probabilities and the policy's"
    )
    vllm_importance_sampling_mode: str = option(
        "sequence_mask",
        "the correction: ratios per token or sequence, truncated or masked",
        choices=("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_without(self, "use_vllm", VllmOptions)


@dataclass(frozen=True)
class EngineOptions(Settings):
    """Engine."""

    engine: str = option(
        "transformers", "what samples answers; vllm has to be installed", choices=("transformers", "vllm")
    )
    vllm_gpu_memory_utilization: float = vllm_memory()
