"""Small random models of several families, batches, and gradients, for tests of shared prompts."""

import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from calibrant.policy.prompts import Tokens

SIZE = dict(vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4)
SIZE |= dict(num_key_value_heads=2, head_dim=4, max_position_embeddings=128, pad_token_id=0)
MIXED = dict(sliding_window=5, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
CONFIGS = {
    "qwen2": (Qwen2Config, SIZE | dict(tie_word_embeddings=True)),
    "qwen2-window": (Qwen2Config, SIZE | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    "llama": (LlamaConfig, SIZE),
    "mistral": (MistralConfig, SIZE | dict(sliding_window=5)),
    "gemma2": (Gemma2Config, SIZE | MIXED | dict(final_logit_softcapping=1.5)),
    "gemma3": (Gemma3TextConfig, SIZE | MIXED),
    "gpt2": (GPT2Config, dict(vocab_size=23, n_embd=16, n_layer=3, n_head=4, n_positions=128)),
    "cohere": (CohereConfig, SIZE | dict(logit_scale=3.0)),
    "granite": (GraniteConfig, SIZE | dict(logits_scaling=3.0)),
}
CASES = [
    (kind, attention, route)
    for kind in CONFIGS
    for attention in (("eager",) if kind == "gemma2" else ("eager", "sdpa"))
    for route in (("cached",) if kind == "gpt2" else ("cached", "packed", *(["flat"] if attention == "sdpa" else [])))
]


def build(kind="llama", attention="sdpa", dtype=torch.float64, **changes):
    """A small random model whose next-token distributions are far from flat."""
    torch.manual_seed(0)
    config, options = CONFIGS[kind]
    model = AutoModelForCausalLM.from_config(config(**options | changes), dtype=dtype, attn_implementation=attention)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.ndim > 1 else weight.add_(torch.randn_like(weight) / 10)
    return model.eval()


def random_batch(which=(0, 1, 0, 2, 1, 0, 0), lengths=(9, 4, 1), ends=(6, 1, 3, 5, 0, 2, 6), columns=(9, 7), seed=0):
    """Rows of prompts `which` with left padding; completions with `ends` tokens of which the last column has none."""
    generator = torch.Generator().manual_seed(seed)
    which, (wide, long) = torch.tensor(which), columns
    prompts = torch.randint(1, 23, (len(lengths), wide), generator=generator)
    prompt_mask = (torch.arange(wide) >= wide - torch.tensor(lengths)[:, None]).long()
    completion_mask = (torch.arange(long) < torch.tensor(ends)[:, None]).long()
    completions = torch.randint(1, 23, (len(which), long), generator=generator)
    return Tokens((prompts * prompt_mask)[which], prompt_mask[which], completions * completion_mask, completion_mask)


class InDouble(TorchFunctionMode):
    """Keeps float64 where models go down to float32 for norms and softmax."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            down = function is torch.Tensor.float or (function is torch.Tensor.to and torch.float32 in args)
            if down:
                return args[0]
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


def watch(model, see):
    """Calls `see` with the inputs of each forward."""
    model.model.register_forward_pre_hook(lambda _, args, given: see(given), with_kwargs=True)


def gradient(model, loss):
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def loss_of(result):
    """A scalar in which every token, entropy and state counts differently."""
    parts = [part for part in result if part is not None]
    return sum((part * torch.linspace(-1, 2, part.numel()).view_as(part).to(part)).sum() for part in parts)
