"""The output head: the states that it reads, and log-probabilities from them without the whole logits.

A model's forward is called as it is, and what it would feed to its head is recorded on the way; the head computes a
single position there. Log-probabilities come from those states afterwards, for the tokens that count alone and in
chunks that are computed again in the backward pass, so that no more than one chunk of logits is ever held.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from calibrant.errors import CalibrantError
from calibrant.policy.graphs import note
from calibrant.policy.logits import logps_of_logits

CACHE = "cache" if "cache" in {f.name for f in fields(BaseModelOutputWithPast)} else "past_key_values"
"""Name of the cache among the arguments and outputs of models; `cache` from transformers 5.24 on."""

CHUNK_ELEMENTS = 2**25
"""Logits that are held at a time: 128 MB in float32."""

KEPT_BYTES = 2**28
"""Logits that are kept for the backward pass; where there are more, all are computed once more in it."""

HALF = (torch.bfloat16, torch.float16)


class Head(NamedTuple):
    """The module that maps states to logits z, and what the model makes of those: `softcap tanh(scale z / softcap)`."""

    module: nn.Module
    vocabulary: int
    scale: float
    softcap: float | None


class Recorded(NamedTuple):
    """States `[rows, L, D]` before the head, the autocast type that they were computed under (None: none), outputs."""

    states: Tensor
    autocast: torch.dtype | None
    outputs: ModelOutput | None


class ForwardPass(NamedTuple):
    """One forward pass of a model over a batch.

    `select` picks from the states of all tokens `[rows, L, D]` those that predict each completion token, `[B, T, D]`;
    `check` raises NotShared after a pass that was not computed as asked for.
    """

    inputs: dict[str, Any]  # arguments of the model
    column: int  # of the first row, which the head reads where its states are recorded
    select: Callable[[Tensor], Tensor]
    check: Callable[[], None] = lambda: None


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The model inside wrappers for data parallelism and compilation."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def model_name(model: nn.Module) -> str:
    """The class of the model inside wrappers."""
    return type(unwrapped(model)).__name__


def text_config(model: nn.Module) -> PreTrainedConfig:
    """The configuration of the language model."""
    return unwrapped(model).config.get_text_config()


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 shards weights of a model or of a part of it, such as the model within an adapter.

    The parameters themselves do not always show it: with `reshard_after_forward: false` they are whole from a forward
    pass to the next backward pass.
    """
    return any(isinstance(module, FSDPModule) for module in model.modules())


def is_sharded_otherwise(model: nn.Module) -> bool:
    """Whether ZeRO-3 or the first version of FSDP shards parameters of a model."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return True
    return any(hasattr(weight, "ds_id") for weight in model.parameters())


def find_head(model: nn.Module) -> Head:
    """The output head of a causal language model; a CalibrantError if there is none, or parameters are sharded."""
    config = text_config(model)
    module = unwrapped(model).get_output_embeddings()
    if module is None or getattr(config, "is_encoder_decoder", False):
        raise CalibrantError(f"{model_name(model)} is no causal language model with an output head; give one that is")
    sharded = is_sharded(model) or is_sharded_otherwise(model)
    if sharded or any(hasattr(weight, "device_mesh") for weight in model.parameters()):
        raise CalibrantError(
            f"the parameters of {model_name(model)} are sharded (FSDP or ZeRO-3), and its head is needed outside "
            "of the forward pass; use the plain forward there"
        )
    return Head(module, config.vocab_size, _scale(config), getattr(config, "final_logit_softcapping", None))


def has_head(model: nn.Module) -> bool:
    """Whether a model has an output head that `find_head` finds."""
    try:
        find_head(model)
    except CalibrantError:
        return False
    return True


def _scale(config: PreTrainedConfig) -> float:
    """The factor of the logits, under the names that families of models have for it."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)
    before_head = config.model_type == "minicpm3"  # which divides the states
    return 1.0 if divisor is None or before_head else 1.0 / divisor


def run(model: nn.Module, head: Head, column: int, *, input_ids: Tensor, **inputs: object) -> Recorded:
    """Calls the model and records the states that its head would have read.

    The head reads one column of the first row. Raises a CalibrantError unless the head is called once and the logits
    there are those that follow from the state.
    """
    with recording(head.module, column) as calls:
        outputs = model(input_ids=input_ids, **inputs)
    problem, shape = "", input_ids.shape
    if len(calls) != 1:
        problem = f"called its output head {len(calls)} times in a forward pass instead of once"
    elif calls[0][0].shape[:2] != shape:
        problem = f"gave its head {list(calls[0][0].shape[:2])} positions for {list(shape)} ids (virtual tokens?)"
    elif not same_logits(head, Recorded(calls[0][0][:1, column : column + 1], calls[0][1], None), outputs.logits):
        problem = "changes its logits in a way that is not known here"
    if problem:
        raise CalibrantError(f"{model_name(model)} {problem}; its log-probabilities cannot be computed here")
    return Recorded(*calls[0], outputs)


def pass_states(model: nn.Module, head: Head, forward: ForwardPass) -> Recorded:
    """Runs a pass as `run` does; the states that predict each completion token, `[B, T, D]`."""
    result = run(model, head, forward.column, **forward.inputs)
    forward.check()
    return result._replace(states=forward.select(result.states))


def pass_logits(model: nn.Module, forward: ForwardPass, where: Tensor) -> Tensor:
    """Logits `[n, V]` of the completion tokens in `where [B, T]`: the states that the head reads in its one call.

    The head is not called outside of the model's forward, and logits are what the model makes of it. Raises a
    CalibrantError for a model that does not call its head once, on the states of all tokens.
    """
    calls: list[int] = []

    def chosen(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = arguments[0]
        if states.shape[:2] != forward.inputs["input_ids"].shape:
            raise CalibrantError(f"{model_name(model)} gives its head other positions than it has ids")
        states = forward.select(states)[:, : where.shape[1]][where]
        calls.append(len(states))
        return states[None], *arguments[1:]

    handle = unwrapped(model).get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        outputs = model(**forward.inputs)
    finally:
        handle.remove()
    forward.check()
    logits: Tensor = outputs.logits
    if calls != [logits.shape[1]] or len(logits) != 1:
        raise CalibrantError(f"{model_name(model)} does not call its output head once in a forward pass")
    return logits[0]


@contextmanager
def recording(module: nn.Module, column: int | None = None) -> Iterator[list[tuple[Tensor, torch.dtype | None]]]:
    """What a head is given at each call, and the autocast type; of one column it reads the first row alone."""
    calls: list[tuple[Tensor, torch.dtype | None]] = []

    def record(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        device = arguments[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        note(calls, (arguments[0], autocast))
        return arguments if column is None else (arguments[0][:1, column : column + 1], *arguments[1:])

    handle = module.register_forward_pre_hook(record)
    try:
        yield calls
    finally:
        handle.remove()


@torch.no_grad()
def same_logits(head: Head, recorded: Recorded, logits: Tensor) -> bool:
    """Whether a model's logits are what its head makes of the recorded states, up to rounding."""
    with autocast_of(recorded):
        expected = _logits(head, recorded.states)
    low = recorded.autocast in HALF or logits.dtype in HALF or recorded.states.dtype in HALF
    tolerance = (3e-2 if low else 1e-4) * expected.abs().max().clamp(min=1.0)
    return logits.shape == expected.shape and bool((logits.to(expected) - expected).abs().max() <= tolerance)


def autocast_of(recorded: Recorded) -> AbstractContextManager[None]:
    """Autocast as it was inside the model's forward, or none."""
    device = recorded.states.device.type
    return torch.autocast(device, dtype=recorded.autocast, enabled=recorded.autocast is not None)


def _logits(head: Head, states: Tensor) -> Tensor:
    """Logits; in at least float32 where they are scaled or capped."""
    values: Tensor = head.module(states)
    if head.scale == 1.0 and head.softcap is None:
        return values
    values = (values.float() if values.dtype in HALF else values) * head.scale
    return values if head.softcap is None else head.softcap * torch.tanh(values / head.softcap)


def token_logps(
    head: Head, states: Tensor, tokens: Tensor, *, temperature: float, entropies: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of tokens `[n]`, and entropies `[n]` of the distributions that they were drawn from, or None.

    `logp = z_y / temperature - logsumexp(z / temperature)` with the model's logits z; `states [n, D]` are what the head
    reads to predict each token. In nats, in at least float32.
    """

    def chunk(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        return logps_of_logits(_logits(head, states), tokens, temperature, entropies)

    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    size = max(1, CHUNK_ELEMENTS // head.vocabulary)
    kept = torch.is_grad_enabled() and len(tokens) * head.vocabulary * dtype.itemsize <= KEPT_BYTES
    if len(tokens) <= size or kept:
        return chunk(states, tokens)
    parts = [
        checkpoint(chunk, *pair, use_reentrant=False, preserve_rng_state=False)
        for pair in zip(states.split(size), tokens.split(size), strict=True)
    ]
    logps, spread = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(spread) if entropies else None


def gradients_at_states(head: Head, states: Tensor, tokens: Tensor, *, temperature: float) -> Tensor:
    """Gradients of the log-probabilities of tokens `[n]` with respect to the states that predict them, `[n, D]`.

    `W^T (onehot(y) - p) scale / temperature` for a linear head with the weight W, without a graph over its logits.
    """
    module = head.module
    if type(module) is not nn.Linear or head.softcap is not None:
        with torch.enable_grad():
            states = states.detach().requires_grad_()
            logps, _ = token_logps(head, states, tokens, temperature=temperature, entropies=False)
            return torch.autograd.grad(logps.sum(), states)[0]
    size = max(1, CHUNK_ELEMENTS // head.vocabulary)
    with torch.no_grad():
        parts = []
        for chunk, ids in zip(states.split(size), tokens.split(size), strict=True):
            logits = _logits(head, chunk)
            residual = ((logits.float() if logits.dtype in HALF else logits) / temperature).softmax(-1).neg_()
            residual.scatter_add_(1, ids[:, None], torch.ones_like(residual[:, :1]))
            parts.append(torch.mm(residual.to(module.weight.dtype), module.weight))
        return (torch.cat(parts) * (head.scale / temperature)).to(states.dtype)
