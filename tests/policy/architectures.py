"""Tiny random models of every causal architecture of the installed transformers, built by introspection."""

from functools import cache

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

VOCABULARY = 1024  # of the embedded tokenizer
LARGEST = 3_000_000
LAYERS = 4

SIZES = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "input_size", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size", "dff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "mlp_intermediate_size"), 24),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "shared_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_layers",), 1),
    **dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "qk_nope_head_dim", "kv_channels"), 8),
    **dict.fromkeys(("qk_rope_head_dim",), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "moe_num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "context_length"), 256
    ),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window"), 6),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("mamba_d_ssm",), 64),
    **dict.fromkeys(("index_n_heads",), 2),
    **dict.fromkeys(("index_head_dim",), 8),
    **dict.fromkeys(("index_topk",), 6),
    **dict.fromkeys(("block_size",), 16),
    **dict.fromkeys(("vocab_size_per_layer_input",), VOCABULARY),
    **dict.fromkeys(("hidden_size_per_layer_input",), 8),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("eos_token_id", "bos_token_id"), 1),
}
DROPOUTS = ("dropout", "pdrop", "drop_rate")
LATENT = (
    "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash",
    "minicpm3", "youtu",
)  # fmt: skip
OWN = {  # what introspection cannot know
    **{kind: dict(num_key_value_heads=4) for kind in LATENT},
    **{kind: dict(head_dim=8) for kind in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral", "qwen4_exp_text")},
    **{kind: dict(rotary_dim=8) for kind in ("gptj", "codegen")},
    "bamba": dict(attn_layer_indices=[1, 3], mamba_expand=2),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]], window_size=6),
    "granitemoehybrid": dict(layer_types=["linear_attention", "full_attention"] * 2),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, use_mamba_kernels=False),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "mamba2": dict(num_heads=4, head_dim=16, expand=2),
    "minicpm3": dict(num_key_value_heads=4, dim_model_base=16),
    "nemotron": dict(num_key_value_heads=2),
}


def types() -> list[str]:
    """The model types that have a causal language model, in order."""
    return sorted({config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING})


@cache
def _config_class(kind: str):
    return next(config for config in MODEL_FOR_CAUSAL_LM_MAPPING if config.model_type == kind)


def _options(config, own: dict) -> dict:
    """The sizes that a configuration has by these names, and no dropout."""
    names = set(config.to_dict()) | set(getattr(config, "attribute_map", {}))
    options = {
        name: value for name, value in SIZES.items() if name in names and getattr(config, name, None) is not None
    }
    options |= {name: SIZES[name] for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, float) and any(part in name for part in DROPOUTS):
            options[name] = 0.0
    mapped = {v: k for k, v in getattr(config, "attribute_map", {}).items() if k in options}
    options = {name: value for name, value in options.items() if name not in mapped}
    return options | own


def tiny(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of at most three million parameters.

    Raises:
        Exception: of any kind, where it cannot be built so small.
    """
    config_class = _config_class(kind)
    own = dict(OWN.get(kind, {}))
    config = config_class(**_options(config_class(), own))
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.ndim == 2 else 1.0)  # so that the distributions are far from flat
    return model
