"""Inner products of rollouts' gradients from one forward and one backward pass over all rows.

Forward hooks store each layer's input; hooks on the outputs receive the gradients in the backward pass, add the layer's
share and free both. No gradient of a parameter is computed.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from calibrant.errors import CalibrantError
from calibrant.gradients import layers
from calibrant.gradients.layers import Layer, UsedRows
from calibrant.gradients.model import Options, Rows, differentiating, log_likelihoods
from calibrant.gradients.plan import first_input


def hooks_gram(model: nn.Module, plan: Mapping[nn.Module, Layer], rows: Rows, groups: int, options: Options) -> Tensor:
    """`<g_i, g_j>` over the planned layers, for rows of whole groups: `[n, G, G]`, float64."""
    rollouts = len(rows.ids) // groups
    state = _Pass(torch.zeros(groups, rollouts, rollouts, dtype=torch.float64, device=rows.ids.device))
    if not plan or not bool(rows.counted.any()):
        return state.gram
    with differentiating(model, ()), torch.enable_grad():
        with ExitStack() as hooks:
            for module, layer in plan.items():
                handle = module.register_forward_hook(partial(state.keep, layer), with_kwargs=True)
                hooks.callback(handle.remove)
            total = log_likelihoods(model, rows, options).sum()
        total.backward()  # no parameter requires a gradient, so none gets one
    return state.gram


@dataclass
class _Pass:
    """State of one pass over the rows."""

    gram: Tensor  # [n, G, G]
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)  # of layers whose gradient is still to come
    from_head: dict[nn.Module, list[UsedRows]] = field(default_factory=dict)  # by embedding, one per group

    def keep(
        self, layer: Layer, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor
    ) -> Tensor:
        """Forward hook. A layer without a differentiable input gets a differentiable zero added to its output."""
        if module in self.inputs:
            raise CalibrantError(
                f"gradient_variance: a {type(module).__name__} is called twice in a pass over the batch, but once in "
                "a pass over three tokens; use backend='loop' for this model"
            )
        given = first_input(args, kwargs)
        assert isinstance(given, Tensor), "make_plan serves layers called with a tensor"
        self.inputs[module] = given.detach()
        if not output.requires_grad:
            output = output + output.new_zeros((), requires_grad=True)
        output.register_hook(partial(self.take, layer, module))
        return output

    def take(self, layer: Layer, module: nn.Module, gradient: Tensor) -> None:
        """Hook on the gradient of the output: adds the layer's share, group by group."""
        inputs, gradients = self._grouped(self.inputs.pop(module)), self._grouped(gradient)
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            if layer.tied_to is not None:
                ids = self._grouped(self.inputs[layer.tied_to])
                self.from_head[layer.tied_to] = [
                    layers.tied_rows(*group) for group in zip(ids, inputs, gradients, strict=True)
                ]
            for n, group in enumerate(zip(inputs, gradients, strict=True)):
                self.gram[n] += self._share(layer, module, n, *group).to(self.gram.device)
        self.from_head.pop(module, None)

    def _grouped(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, self.gram.shape[:2])

    def _share(self, layer: Layer, module: nn.Module, n: int, inputs: Tensor, gradients: Tensor) -> Tensor:
        if isinstance(module, nn.Embedding):
            head = self.from_head[module][n] if module in self.from_head else None
            return layers.embedding_gram(module, inputs, gradients, head)
        other = self.from_head[layer.tied_to][n].tokens if layer.tied_to is not None else None
        return layers.layer_gram(layer, module, inputs, gradients, without=other)
