"""Generation with each distinct prompt read once, and its keys and values held once for all of its rows."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig

from calibrant.errors import CalibrantError
from calibrant.policy import prompt_attention
from calibrant.policy.attention import attention_named
from calibrant.policy.block import find_blocks, recording_inputs
from calibrant.policy.cached import repeatable_cache
from calibrant.policy.casts import weights_cast_once
from calibrant.policy.decode import Decoded, Options, RepeatedCache, RowCache, decode, decoding, plain_sampling
from calibrant.policy.group_attention import GroupCache, GroupLayer
from calibrant.policy.head import has_head, is_sharded
from calibrant.policy.prompt_attention import PromptRow, prompt_row
from calibrant.policy.prompts import distinct_rows
from calibrant.policy.replays import ReplayedCache, replayable
from calibrant.policy.routes import refusal
from calibrant.policy.sharded import largest, together
from calibrant.policy.verify import NotShared, assert_close, reason_of, record_of, short_prompts, warn_once

GROUPED, REPEATED = "generation, prompts held once", "generation"
"""Ways of decoding, the better first: rows attend to their prompt's keys and values, or to a copy of them each."""
COPIES = "repeats the keys and values of a prompt for each of its rows, they cannot be held once"
Generate = Callable[..., Any]


@contextmanager
def shared_prefill(model: nn.Module, *, states: bool = False, block: bool = False) -> Iterator[Decoded]:
    """Within it, `model.generate` reads each distinct prompt once and drops rows once they are finished.

    The samples are those of `generate`, up to rounding of the logits. Generation is left as it is where no prompt is
    repeated; where it is more than sampling or greedy search from token ids (`plain_sampling`); where `generate` was
    replaced, on the instance or by its class; and, with one warning, for a model whose cache cannot be repeated, or
    that failed or differed when its first two tokens were compared with those of `generate` at the first use. A model
    whose attention cannot read a prompt that is held once decodes on a cache repeated for its rows, with one warning.

    Yields, with `states`, what the last call of `generate` decoded and its output head read, with `block` its last
    block too; empty where generation is left as it is, and for a model without a head.
    """
    decoded, records = Decoded(), states and has_head(model)
    if not _is_own_generate(model):
        yield decoded
        return
    original, registered = cast("Generate", model.generate), vars(model).get("generate")

    def generate(*arguments: object, **options: Any) -> Any:
        config = None if arguments or REPEATED in record_of(model).failed else _shareable(model, options)
        if is_sharded(model) and largest(int(config is None), next(model.parameters()).device):
            config = None  # all processes share prompts, or none
        if config is None:
            return original(*arguments, **options)
        ids, mask = options["input_ids"], options["attention_mask"]

        def by(way: str) -> Any:
            _verify(model, original, ids, mask, config, way)
            with casting(model, way), _block_recorded(model, decoded if records and block else None, ids, mask):
                prompts, into = prefilled(model, ids, mask, way), decoded if records else None
                return original(**options, custom_generate=partial(decode, prompts=prompts, decoded=into))

        return _best(model, by, _random_state(ids.device), lambda: original(**options))

    vars(model)["generate"] = generate  # of this instance; the class keeps its own
    try:
        yield decoded
    finally:
        if vars(model).get("generate") is generate:
            del vars(model)["generate"]
            if registered is not None:
                vars(model)["generate"] = registered


@contextmanager
def _block_recorded(model: nn.Module, decoded: Decoded | None, ids: Tensor, mask: Tensor) -> Iterator[None]:
    """Adds to what is decoded within it what the last block read, if each pass called it once."""
    if decoded is None:
        yield
        return
    with recording_inputs(find_blocks(model)[-1]) as calls:
        yield
    decoded.prompts = decoded.where = None
    passes = [(len(rows), 1) for rows in decoded.rows]
    if [tuple(read.shape[:2]) for read in calls[1:]] == passes:
        prompts = distinct_rows(ids, mask)
        ids, mask = (x[prompts.first, :-1] for x in (ids, mask))
        if calls[0].shape[:2] != ids.shape and (row := _row(ids, mask)) is not None:
            calls[0] = calls[0][0, row.places]
        decoded.read, decoded.prompts, decoded.where = calls, prompts, mask.bool()


def _best(model: nn.Module, by: Callable[[str], Any], restore: Callable[[], None], plain: Callable[[], Any]) -> Any:
    """What the best way of decoding that works for a model returns; warns once of what does not work."""
    failed = record_of(model).failed
    for way in [way for way in (GROUPED, REPEATED) if way not in failed]:
        try:
            output = by(way)
        except Exception as error:  # of any model; its own `generate` raises what is its own
            if isinstance(error, CalibrantError) and not isinstance(error, NotShared):
                raise  # damaged weights: the same in any way of generation
            if is_sharded(model) and way in record_of(model).verified:
                raise  # the other processes have not failed, and go on this way
            failed[way] = reason_of(error)
            restore()
        else:
            if way == REPEATED:
                warn_once(model, failed[GROUPED], COPIES)
            return output
    warn_once(model, failed[REPEATED])
    return plain()


def casting(model: nn.Module, way: str) -> AbstractContextManager[None]:
    """What a way of decoding runs in: with prompts held once, weights are cast once too, unless FSDP2 casts them."""
    return weights_cast_once(model) if way == GROUPED and not is_sharded(model) else nullcontext()


def _is_own_generate(model: nn.Module) -> bool:
    """Whether `generate` is that of transformers or PEFT, everywhere in the model; FSDP2 may wrap the model's."""

    def own(module: nn.Module) -> bool:
        method = getattr(type(module), "generate", None)
        if "generate" in vars(module):
            method = vars(module)["generate"] if module is model and is_sharded(model) else None
            return _made_by_known(method)
        return method is None or _made_by_known(method)

    return all(map(own, model.modules()))


def _made_by_known(method: object) -> bool:
    return str(getattr(method, "__module__", "")).startswith(("transformers.generation", "peft."))


def _shareable(model: nn.Module, options: Options) -> GenerationConfig | None:
    """The configuration of plain sampling in which a prompt of at least two tokens stands in several rows; else None.

    What cannot be resolved here is left to `generate`, which says why.
    """
    try:
        config = plain_sampling(model, options)
    except Exception:
        return None
    if config is None or options["input_ids"].shape[1] < 2:
        return None
    first = distinct_rows(options["input_ids"], options["attention_mask"]).first
    return config if len(first) < len(options["input_ids"]) else None


def sampling_to_share(model: nn.Module, options: Options) -> GenerationConfig:
    """The configuration that `model.generate(**options)` resolves to; NotShared is raised if it shares no prompts."""
    if not _is_own_generate(model):
        raise NotShared("its `generate` is not that of transformers")
    if (reason := refusal(model)) is not None:
        raise NotShared(f"it {reason}")
    config = plain_sampling(model, options)
    if config is None:
        raise NotShared("its generation_config asks for more than plain sampling on a dynamic cache")
    return config


def _random_state(device: torch.device) -> Callable[[], None]:
    """Keeps the states of the random generators; called, it puts them back."""
    state = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        torch.set_rng_state(state)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)

    return restore


def _verify(
    model: nn.Module, original: Generate, ids: Tensor, mask: Tensor, config: GenerationConfig, way: str
) -> None:
    """Compares the logits of two tokens with those of `generate`, for two short prompts, the first time for a model."""
    if (reason := refusal(model)) is not None:
        raise NotShared(f"it {reason}")
    if way in record_of(model).verified:
        return
    few, restore = distinct_rows(ids, mask).first[[0, -1]], _random_state(ids.device)
    short = short_prompts(model, ids[few], mask[few])

    def both() -> tuple[Tensor, Tensor]:
        return logits_both_ways(model, original, *short, config, 2, way)[:2]

    together(model, ids.device, lambda: assert_close(model, "logits after a shared prompt", both))
    record_of(model).verified.add(way)
    restore()


@torch.no_grad()
def logits_both_ways(
    model: nn.Module, original: Generate, ids: Tensor, mask: Tensor, config: GenerationConfig, new_tokens: int, way: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits `[n, V]` of the first tokens after some prompts, with shared prompts and as `generate` computes them.

    Also the tokens `[n]` that `generate` sampled there. The model has to be in evaluation mode. Every prompt has
    two rows, and after the first token all but the first have one.
    """
    probe, count = copy.deepcopy(config), len(ids)
    probe.update(max_length=None, min_length=None, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    probe.update(return_dict_in_generate=True, output_logits=True)
    given = {"input_ids": ids, "attention_mask": mask, "generation_config": probe}
    plain = together(model, ids.device, lambda: original(**given))
    logits = []
    with casting(model, way):
        cache = together(model, ids.device, lambda: prefilled(model, ids.repeat(2, 1), mask.repeat(2, 1), way))
    with casting(model, way), decoding(model, cache):
        for step in range(len(plain.logits)):
            rows, attended = cache.rows, torch.cat([mask, mask.new_ones(count, step)], dim=1)
            seen = (plain.sequences[:, : ids.shape[1] + step], attended)
            found = cache.next_logits(model, *(x[rows % count] for x in seen))
            logits.append(found[rows.argsort()[:count]].float())
            cache.keep((rows <= count).nonzero()[:, 0])
    tokens = plain.sequences[:, ids.shape[1] :].T.flatten()
    return torch.cat(logits), torch.cat(plain.logits), tokens


@torch.no_grad()
def prefilled(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, way: str) -> RowCache:
    """The cache of all prompt tokens but the last, for the rows of `[B, P]`.

    Positions are those that `generate` gives: padding is not counted.
    """
    prompts = distinct_rows(input_ids, attention_mask)
    ids, mask = (x[prompts.first, :-1] for x in (input_ids, attention_mask))
    row = _row(ids, mask) if way == GROUPED else None
    if row is None:
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        cache = repeatable_cache(model, model(**inputs, use_cache=True, logits_to_keep=1))
    else:
        with attention_named(model, prompt_attention.NAME):
            output = model(
                input_ids=row.ids, position_ids=row.positions, use_cache=True, logits_to_keep=1, prompt_row=row
            )
        cache = repeatable_cache(model, output)
    if way == REPEATED:
        return RepeatedCache(cache, prompts.which)
    grouped = GroupCache(_layers(cache, row), mask, prompts.which)
    return ReplayedCache(grouped) if replayable(model, grouped) else grouped


def _row(ids: Tensor, mask: Tensor) -> PromptRow | None:
    """The row in which prompts `[N, P]` are read, where they are: on a CPU, as its attention is many small products."""
    return prompt_row(ids, mask) if ids.device.type == "cpu" else None


def _layers(cache: Cache, row: PromptRow | None) -> list[GroupLayer]:
    """Keys and values of prompts, from a cache with an entry per prompt, or one that was filled by a row."""
    windows = [getattr(layer, "sliding_window", None) for layer in cache.layers]
    if row is None:
        return [GroupLayer([x.keys, x.values], window) for x, window in zip(cache.layers, windows, strict=True)]
    if set(row.layers) != set(range(len(windows))):
        raise NotShared("not all of its layers attend by the functions that transformers registers")
    return [GroupLayer(row.columns(i, window and window - 1), window) for i, window in enumerate(windows)]
