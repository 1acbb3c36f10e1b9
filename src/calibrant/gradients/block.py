"""Inner products of the rollouts' gradients of a model's last block, from what the block read: no deep backward pass.

A group's prompt is read once, all tokens but the last; its keys and values stand once per rollout, so that each rollout
has a gradient of its own there. The last token of the prompt and the completions are read on them. The backward pass
ends at the block, and the gradients at the repeated keys and values are taken back to the prompt's tokens one rollout
at a time. What the block reads is recorded while sampling, or by a forward pass without gradients.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from calibrant.checks import check_positive, check_shapes
from calibrant.errors import CalibrantError, reason
from calibrant.gradients.layers import Layer, layer_gram
from calibrant.gradients.model import Rows, differentiating
from calibrant.gradients.plan import first_input, make_plan
from calibrant.policy.block import BlockInputs, cache_of_last, find_blocks, last_alone, recording_inputs
from calibrant.policy.cached import repeatable_cache
from calibrant.policy.head import CACHE, Head, find_head, gradients_at_states, model_name, recording, run, unwrapped
from calibrant.policy.verify import assert_close, evaluating, record_of

CALLER = "block_gram"
Seen = dict[nn.Module, tuple[Tensor, Tensor]]  # layer -> its input and its output in one pass


class _Read(NamedTuple):
    """What the last block read in a group, as in `BlockInputs`."""

    prompt: Tensor  # [P - 1, D]
    rollouts: Tensor  # [G, T, D]


class _Group(NamedTuple):
    """The tokens of a group, without padding of the prompt and without columns that no completion reaches."""

    prompt: Tensor  # [P]
    tokens: Tensor  # [G, T]
    counted: Tensor  # [G, T], boolean; the tokens whose log-probabilities are summed

    def read(self) -> Tensor:
        """The tokens that predict `tokens`, `[G, T]`."""
        return torch.cat([self.prompt[-1:].expand(len(self.tokens), 1), self.tokens[:, :-1]], dim=1)


class _LastBlock(NamedTuple):
    """A model, and what is known of its last block."""

    model: nn.Module
    head: Head
    blocks: list[nn.Module]
    in_tuple: bool  # whether blocks return tuples
    layers: Mapping[nn.Module, Layer]  # of the last block, those with parameters that are trained


def block_gram(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    inputs: BlockInputs | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Inner products `<g_i, g_j>` of the rollouts' gradients of the last block, `[N, G, G]`, float64.

    `g_i` is the gradient of `sum_t log pi(y_it | q, y_i<t)` with respect to the parameters of the last block that are
    trained: attention, MLP and norms, or their adapters. The same as
    `gradient_variance(..., parameters=["*.layers.L.*"], gram=True).gram`, for the cost of one block.

    Args:
        model: a causal language model of transformers whose last block is attention with keys and values.
        batch: tensors of integers with TRL's names, `[N, G, ...]`: `prompt_ids` and `prompt_mask` (padding anywhere),
            `completion_ids` and `completion_mask` (padded on the right), and `tool_mask` if some tokens of completions
            are not the model's own. The rollouts of a group have one prompt.
        inputs: what the block read in the N * G rows, in group order; None: one more forward pass records it.
        temperature: divides the logits.

    Raises:
        CalibrantError: a model whose last block cannot be run alone, or with trained parameters that have no rule.

    Reference: ours (c): the sum over pairs of tokens of `signals.grams`, for the layers of one block.
    """
    check_positive(CALLER, temperature=temperature)
    groups = _groups(batch)
    model = unwrapped(model)
    with evaluating(model):
        last = _last_block(model, groups[0].prompt)
        _verify(last, groups)
        grams = []
        for n, group in enumerate(groups):
            read = _recorded(last, group) if inputs is None else _read(inputs, n, group)
            grams.append(_group_gram(last, group, read, temperature))
    return torch.stack(grams)


def check_block(model: nn.Module) -> None:
    """Raises a CalibrantError for a model whose last block `block_gram` cannot serve, as far as a tiny pass shows."""
    model = unwrapped(model)
    cache_of_last(model)
    device = next(model.parameters()).device
    with evaluating(model):
        _last_block(model, torch.zeros(1, dtype=torch.long, device=device))


def _groups(batch: Mapping[str, Tensor]) -> list[_Group]:
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    check_shapes(CALLER, **{name: (batch[name], "N G P" if "prompt" in name else "N G T") for name in names})
    ids, masks = batch["prompt_ids"], batch["prompt_mask"].bool()
    counted = batch["completion_mask"].bool()
    if "tool_mask" in batch:
        counted = counted & batch["tool_mask"].bool()
    groups = []
    for n, (tokens, where) in enumerate(zip(batch["completion_ids"], counted, strict=True)):
        prompts = [row[mask] for row, mask in zip(ids[n], masks[n], strict=True)]
        if not len(prompts[0]) or any(not torch.equal(prompts[0], other) for other in prompts[1:]):
            raise CalibrantError(f"{CALLER}: the rollouts of group {n} have no prompt, or different ones")
        reached = where.any(0).nonzero()
        width = int(reached[-1]) + 1 if len(reached) else 1
        groups.append(_Group(prompts[0], tokens[:, :width], where[:, :width]))
    return groups


def _last_block(model: nn.Module, ids: Tensor) -> _LastBlock:
    """Finds the last block, and sorts its trained parameters into layers with a rule; raises if one has none."""
    blocks = find_blocks(model)
    trained = {f"{n}": p for n, p in blocks[-1].named_parameters() if p.requires_grad}
    if not trained:
        raise CalibrantError(f"{CALLER}: no parameter of the last block of {model_name(model)} is trained")
    results: list[object] = []
    handle = blocks[-1].register_forward_hook(lambda _module, _args, output: results.append(output))
    every = torch.ones_like(ids[None], dtype=torch.bool)
    try:
        plan = make_plan(model, trained, Rows(ids[None], every, every))
    finally:
        handle.remove()
    if plan.fallback:
        raise CalibrantError(
            f"{CALLER}: no rule for the parameter '{next(iter(plan.fallback))}' of the last block of "
            f"{model_name(model)} (experts, or a layer of its own kind); use the gradients of the output head"
        )
    return _LastBlock(model, find_head(model), blocks, isinstance(results[-1], tuple), plan.layers)


def _verify(last: _LastBlock, groups: list[_Group]) -> None:
    """Compares the states after the last block alone with those of a plain forward, for one row, once for a model."""
    verified, group = record_of(last.model).verified, next((g for g in groups if bool(g.counted.any())), None)
    if CALLER in verified or group is None:
        return
    row = int(group.counted.sum(1).argmax())
    few = group._replace(tokens=group.tokens[row : row + 1], counted=group.counted[row : row + 1])

    def both() -> tuple[Tensor, Tensor]:
        ids, read = torch.cat([few.prompt, few.tokens[0, :-1]])[None], _recorded(last, few)
        plain = run(last.model, last.head, 0, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        alone = _states(last, few, read, _prompt_pass(last, few, read)[0])
        return alone[0], plain.states[0, len(few.prompt) - 1 :]

    try:
        with torch.no_grad():
            assert_close(last.model, "states after the last block alone", both)
    except Exception as error:  # models may raise any type
        raise CalibrantError(
            f"the last block of {model_name(last.model)} cannot be run alone ({reason(error)}); use the gradients of "
            "the output head"
        ) from error
    verified.add(CALLER)


@torch.no_grad()
def _recorded(last: _LastBlock, group: _Group) -> _Read:
    """What the last block reads, from a forward pass of the whole model: the prompt once, the completions after it."""
    options: dict[str, object] = {"use_cache": True}
    ids, before = group.read(), len(group.prompt) - 1
    with recording_inputs(last.blocks[-1]) as calls:
        if before:
            output = last.model(input_ids=group.prompt[None, :-1], use_cache=True, logits_to_keep=1)
            cache = repeatable_cache(last.model, output)
            cache.batch_repeat_interleave(len(ids))
            options[CACHE] = cache
        run(last.model, last.head, 0, input_ids=ids, attention_mask=_attended(before, ids), **options)
    *prompts, rollouts = calls
    return _Read(prompts[0][0] if prompts else rollouts[0, :0], rollouts)


def _read(inputs: BlockInputs, n: int, group: _Group) -> _Read:
    """The rows of group n, as far as its tokens reach."""
    count, width = group.tokens.shape
    return _Read(inputs.of_prompt(n * count), inputs.rollouts[n * count : (n + 1) * count, :width])


def _attended(before: int, ids: Tensor) -> Tensor:
    return ids.new_ones(len(ids), before + ids.shape[1])


@contextmanager
def _watching(layers: Mapping[nn.Module, Layer]) -> Iterator[Seen]:
    """Inputs and outputs of layers; one that is called twice keeps the last call, which `make_plan` has ruled out."""
    seen: Seen = {}

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor) -> None:
        given = first_input(args, kwargs)
        assert isinstance(given, Tensor), "make_plan serves layers called with a tensor"
        seen[module] = given.detach(), output

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _prompt_pass(last: _LastBlock, group: _Group, read: _Read) -> tuple[Cache, Seen]:
    """The cache of the last block after all prompt tokens but the last, `[1, ...]`."""
    cache = cache_of_last(last.model)
    with _watching(last.layers) as seen:
        if len(read.prompt):
            _alone(last, read.prompt[None], group.prompt[None, :-1], cache)
    return cache, seen


def _states(last: _LastBlock, group: _Group, read: _Read, cache: Cache) -> Tensor:
    """What the head reads to predict each completion token, `[G, T, D]`."""
    return _alone(last, read.rollouts, group.read(), cache)


def _alone(last: _LastBlock, inputs: Tensor, ids: Tensor, cache: Cache) -> Tensor:
    """What the head reads in a pass of the last block alone over ids `[rows, L]` that follow those in the cache."""
    inputs = inputs.detach().requires_grad_(torch.is_grad_enabled())
    options = {"attention_mask": _attended(cache.get_seq_length(), ids), "use_cache": True, CACHE: cache}
    with (
        last_alone(last.blocks, last.head.module, inputs, in_tuple=last.in_tuple),
        recording(last.head.module) as calls,
    ):
        last.model(input_ids=ids, **options)
    return calls[0][0]


def _group_gram(last: _LastBlock, group: _Group, read: _Read, temperature: float) -> Tensor:
    count, where = len(group.tokens), group.counted
    gram = torch.zeros(count, count, dtype=torch.float64, device=where.device)
    if not bool(where.any()):
        return gram
    with torch.enable_grad():
        with differentiating(last.model, ()):
            cache, first = _prompt_pass(last, group, read)
            shared, repeated = _repeat(cache, count)
            with _watching(last.layers) as second:
                states = _states(last, group, read, cache)[where]
        at_states = gradients_at_states(last.head, states, group.tokens[where], temperature=temperature)
        wanted = [*(output for _, output in second.values()), *repeated]
        gradients = torch.autograd.grad(states, wanted, at_states)
        at_layers = dict(zip(second, gradients, strict=False))
        at_prompt = _prompt_gradients(first, shared, gradients[len(second) :])
    with torch.no_grad(), torch.autocast(where.device.type, enabled=False):
        for module, layer_of in last.layers.items():
            inputs, outputs = second[module][0].flatten(1, -2), at_layers[module].flatten(1, -2)
            if module in at_prompt:
                start = first[module][0].expand(count, *first[module][0].shape[1:]).flatten(1, -2)
                inputs = torch.cat([start, inputs], dim=1)
                outputs = torch.cat([at_prompt[module].flatten(1, -2), outputs], dim=1)
            gram += layer_gram(layer_of, module, inputs, outputs)
    return gram


def _repeat(cache: Cache, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Repeats the prompt's keys and values for the rollouts; returns those before, and after, with a new graph."""
    layer = cache.layers[-1]
    if not cache.get_seq_length():
        return [], []
    shared = [layer.keys, layer.values]
    layer.keys, layer.values = (x.detach().repeat_interleave(count, dim=0).requires_grad_() for x in shared)
    return shared, [layer.keys, layer.values]


def _prompt_gradients(seen: Seen, shared: list[Tensor], gradients: tuple[Tensor, ...]) -> dict[nn.Module, Tensor]:
    """Gradients `[G, P - 1, ...]` at the outputs of the layers before the prompt's keys and values.

    `gradients` are those at the keys and values that were repeated, one per rollout.
    """
    if not shared:
        return {}
    outputs = [output for _, output in seen.values()]
    rows = [
        torch.autograd.grad(shared, outputs, [x[None] for x in row], retain_graph=True, allow_unused=True)
        for row in zip(*gradients, strict=True)
    ]
    found = {module: [row[k] for row in rows] for k, module in enumerate(seen)}
    return {module: torch.cat([x for x in of if x is not None]) for module, of in found.items() if of[0] is not None}
