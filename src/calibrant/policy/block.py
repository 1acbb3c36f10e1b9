"""The last block of a model: what it reads, and passes in which it runs alone on what was recorded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from calibrant.errors import CalibrantError
from calibrant.policy.cached import REPEATABLE
from calibrant.policy.graphs import note
from calibrant.policy.head import model_name, text_config, unwrapped


class BlockInputs(NamedTuple):
    """What the last block read in B rows of n distinct prompts."""

    prompts: Tensor  # [n, L, D], at all tokens of the prompts but the last
    where: Tensor  # [n, L], boolean; False on padding
    which: Tensor  # [B], the prompt of each row
    rollouts: Tensor  # [B, T, D], at the token before each completion token

    def of_prompt(self, row: int) -> Tensor:
        """What it read at the prompt of a row, without padding."""
        prompt = self.which[row]
        return self.prompts[prompt][self.where[prompt]]


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a language model in order, the last of which is the one before the output head."""
    inner, count = unwrapped(model), text_config(model).num_hidden_layers
    decoder = getattr(inner, "get_decoder", lambda: inner)()
    lists = (module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    blocks = next(lists, None)
    if blocks is None:
        raise CalibrantError(f"{model_name(model)} has no list of {count} blocks, so that its last one is not known")
    return list(blocks)


@contextmanager
def recording_inputs(block: nn.Module) -> Iterator[list[Tensor]]:
    """What a block reads at each call, `[rows, L, D]`."""
    calls: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(calls, (args[0] if args else next(iter(kwargs.values()))).detach())

    handle = block.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def last_alone(blocks: Sequence[nn.Module], head: nn.Module, inputs: Tensor, *, in_tuple: bool) -> Iterator[None]:
    """Within it, a forward of the model runs the last block alone, on `inputs [rows, L, D]`, and no output head.

    Embeddings, masks and positions before the block, and the norm after it, are the model's own. The other blocks
    return what they are given, `in_tuple` if the model's blocks return tuples; so does the head.
    """
    *others, last = blocks

    def pass_on(hidden_states: Tensor, *_: object, **__: object) -> Tensor | tuple[Tensor]:
        return (hidden_states,) if in_tuple else hidden_states

    def feed(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (inputs, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): inputs}

    with ExitStack() as changes:
        changes.callback(last.register_forward_pre_hook(feed, with_kwargs=True).remove)
        changes.enter_context(_replaced_forward(head, lambda states: states))
        for block in others:
            changes.enter_context(_replaced_forward(block, pass_on))
        yield


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    before = vars(module).get("forward")  # of the instance; its class keeps its own
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        vars(module).update({} if before is None else {"forward": before})


def cache_of_last(model: nn.Module) -> Cache:
    """An empty cache for passes in which the last block runs alone: its layer stands for those of all blocks."""
    cache = DynamicCache(config=text_config(model))
    if not cache.layers or type(cache.layers[-1]) not in REPEATABLE:
        raise CalibrantError(f"the last block of {model_name(model)} is not attention with keys and values")
    cache.layers = [cache.layers[-1]] * len(cache.layers)
    return cache
