"""Generation with each distinct prompt read once: the cache of its tokens is repeated for its rows."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from calibrant.errors import CalibrantError
from calibrant.policy.cached import repeatable
from calibrant.policy.decode import Decoded, decode, next_logits, plain_sampling
from calibrant.policy.head import HALF, has_head
from calibrant.policy.known import NotShared, check_close, fail, known, warn_once
from calibrant.policy.modes import evaluating
from calibrant.policy.routes import refusal

WAY = "generation"


@contextmanager
def shared_prefill(model: nn.Module, *, states: bool = False) -> Iterator[Decoded]:
    """Within it, `model.generate` reads each distinct prompt once and drops rows once they are finished.

    The same samples as without, up to rounding of the logits. Generation is as it was where nothing is repeated; where
    it is more than sampling or greedy search from token ids (`plain_sampling`); where `generate` was replaced, on the
    instance or by its class; and for a model whose cache cannot be repeated, or that failed or differed when its first
    two tokens were compared with those of `generate` at the first use: one warning says so.

    Args:
        model: whatever `generate` is called on.
        states: whether to keep what the output head reads, for whoever needs it afterwards; not kept without a head.

    Yields:
        What the last call of `generate` has decoded, if states are kept; nothing where generation is as it was.
    """
    decoded, records = Decoded(), states and has_head(model)
    if not _is_own_generate(model):
        yield decoded
        return
    original: Any = model.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        config = None if arguments or WAY in known(model).failed else _shareable(model, options)
        if config is None:
            return original(*arguments, **options)
        random = _random_state(options["input_ids"].device)
        try:
            return _generate(model, original, options, config, decoded if records else None)
        except CalibrantError:  # of weights that are damaged: the same in any way of generation
            raise
        except (
            Exception
        ) as error:  # whatever a model of somebody else's raises; its own generate raises what is its own
            fail(model, WAY, error)
            warn_once(model, known(model).failed[WAY])
            random()
            return original(**options)

    vars(model)["generate"] = generate  # of this instance; the class keeps its own
    try:
        yield decoded
    finally:
        if vars(model).get("generate") is generate:
            del vars(model)["generate"]


def _is_own_generate(model: nn.Module) -> bool:
    """Whether `generate` is that of transformers or PEFT, everywhere in the model."""
    for module in model.modules():
        method = getattr(type(module), "generate", None)
        made_by = str(getattr(method, "__module__", ""))
        foreign = method is not None and not made_by.startswith(("transformers.generation", "peft."))
        if foreign or "generate" in vars(module):
            return False
    return True


def _shareable(model: nn.Module, options: dict[str, Any]) -> GenerationConfig | None:
    """The configuration of plain sampling in which a prompt of at least two tokens stands in several rows; else None.

    What cannot be resolved here is left to `generate`, which says why.
    """
    try:
        config = plain_sampling(model, options)
    except Exception:
        return None
    if config is None or options["input_ids"].shape[1] < 2:
        return None
    return config if len(options["input_ids"].unique(dim=0)) < len(options["input_ids"]) else None


def _random_state(device: torch.device) -> Callable[[], None]:
    """Keeps the states of the random generators; called, it puts them back."""
    state, on_device = torch.get_rng_state(), None
    if device.type == "cuda":
        on_device = torch.cuda.get_rng_state(device)

    def restore() -> None:
        torch.set_rng_state(state)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)

    return restore


def _generate(
    model: Any,
    original: Callable[..., Any],
    options: dict[str, Any],
    config: GenerationConfig,
    decoded: Decoded | None,
) -> Any:
    if (reason := refusal(model)) is not None:
        raise NotShared(f"it {reason}")
    ids, mask = options["input_ids"], options["attention_mask"]
    if WAY not in known(model).verified:
        _verify(model, original, ids, mask, config)
    cache = prefilled(model, ids, mask)
    if cache is None:
        return original(**options)
    return original(**options, past_key_values=cache, custom_generate=partial(decode, decoded=decoded))


@torch.no_grad()
def _verify(model: Any, original: Callable[..., Any], ids: Tensor, mask: Tensor, config: GenerationConfig) -> None:
    """Compares the logits of the first two tokens with those of `generate`, for up to two prompts.

    Raises:
        NotShared: they differ; also anything that the model raises.
    """
    rows = torch.cat([ids, mask.to(ids)], dim=1).unique(dim=0)[:2]
    ids, mask = rows.split(ids.shape[1], dim=1)
    probe = copy.deepcopy(config)
    probe.update(max_length=None, min_length=None, max_new_tokens=2, min_new_tokens=2)
    probe.update(return_dict_in_generate=True, output_logits=True)
    random, count = _random_state(ids.device), len(ids)
    with evaluating(model):
        plain = original(input_ids=ids, attention_mask=mask, generation_config=probe)
        cache: Any = prefilled(model, ids.repeat(2, 1), mask.repeat(2, 1))
        for step, logits in enumerate(plain.logits):
            repeats = 2 - step  # half of the rows are dropped after the first token
            seen = plain.sequences[:, : ids.shape[1] + step].repeat(repeats, 1)
            attended = torch.cat([mask, mask.new_ones(count, step)], dim=1).repeat(repeats, 1)
            found = next_logits(model, seen, attended, cache)
            rough = next(model.parameters()).dtype in HALF or torch.is_autocast_enabled(ids.device.type)
            check_close("logits after a shared prompt", found, logits.repeat(repeats, 1), rough=rough)
            cache.batch_select_indices(torch.arange(count, device=ids.device))
    random()
    known(model).verified.add(WAY)


@torch.no_grad()
def prefilled(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Cache | None:
    """The cache of all prompt tokens but the last, one entry per row; None where no row repeats another.

    Positions are those that `generate` gives: padding is not counted.

    Args:
        model: a causal language model.
        input_ids: `[B, P]`, padded on the left.
        attention_mask: `[B, P]`.

    Raises:
        NotShared: the model's cache cannot be repeated.
    """
    rows = torch.cat([input_ids, attention_mask.to(input_ids)], dim=1)
    distinct, which = rows.unique(dim=0, return_inverse=True)
    length = input_ids.shape[1]
    if len(distinct) == len(rows) or length < 2:
        return None
    ids, mask = distinct[:, : length - 1], distinct[:, length : 2 * length - 1]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache: Any = getattr(output, "past_key_values", None)
    if not repeatable(cache):
        raise NotShared("its cache cannot be repeated (attention with keys and values is needed in every layer)")
    cache.batch_select_indices(which)
    return cache
