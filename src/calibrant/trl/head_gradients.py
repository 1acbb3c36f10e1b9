"""Inner products of the gradients of the policy's output head, for a batch of rollouts in training."""

from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from trl.models.utils import disable_gradient_checkpointing

from calibrant.errors import CalibrantError
from calibrant.policy import logps_in_chunks
from calibrant.policy.head import Head, find_head, model_name
from calibrant.signals import head_gram_from_weight
from calibrant.trl.config import CalibratedGRPOConfig
from calibrant.trl.passes import Batch, whole_groups

EXACT_VOCABULARY = 2**15
"""Largest vocabulary of which every column is taken where `head_gram_top` is None."""
TOP = 64
"""Columns per token that are taken of a larger one.

With random heads of 131,072 columns and next-token entropies of 2 and 6 nats the error was at most 2e-4 of
`|g_i| |g_j|`, in half of the time of all columns; with 32,768 columns there was hardly any time to be saved.
"""


class HeadGradients:
    """Computes the input `head_gram` from the last hidden states of the policy that sampled, and the head's weight."""

    def __init__(self, policy: nn.Module, args: CalibratedGRPOConfig, accelerator: Accelerator):
        self.args, self.accelerator, self._sharing = args, accelerator, args.share_prefix
        readable_head(policy, cast=args.cast_lm_head_to_fp32)

    def __call__(
        self, model: nn.Module, output: Batch, mask: Tensor, size: int, states: Tensor | None = None
    ) -> Tensor:
        """Inner products of each local rollout with the rollouts of its group, `[B, G]`, float64.

        `output` is what TRL's `_generate_and_score_completions` returns on this process; `mask [B, T]` says which
        tokens the policy wrote; groups are `size` (G) consecutive rows of all processes together. `states [B, T, D]`
        are what the head read to predict each token; None: one more forward pass computes them.
        """
        if any(name in output for name in ("pixel_values", "image_grid_thw")):
            raise CalibrantError("the input 'head_gram' is not computed for prompts with images; choose another method")
        ids, states = output["completion_ids"], self._states(model, output) if states is None else states
        if len(mask) % size == 0:  # every process has as many rows, so groups are whole on each
            return self._gram(model, states, ids, mask, size)
        gather, pad = self.accelerator.gather, self.accelerator.pad_across_processes
        rows, own = whole_groups(len(mask), size, self.accelerator)
        states, ids, every = (gather(pad(x, dim=1))[rows] for x in (states, ids, mask))  # padding does not count
        return self._gram(model, states, ids, every, size)[own]

    def _gram(self, model: nn.Module, states: Tensor, ids: Tensor, mask: Tensor, size: int) -> Tensor:
        """`[B, G]` of whole groups."""
        head, given = readable_head(model), self.args.head_gram_top
        linear = cast(nn.Linear, head.module)
        states, ids, mask = (x.view(-1, size, *x.shape[1:]) for x in (states * head.scale, ids, mask))
        top = None if len(linear.weight) <= EXACT_VOCABULARY else TOP
        gram = head_gram_from_weight(
            *(states, linear.weight, ids, mask),
            bias=linear.bias,
            temperature=self.args.temperature,
            top=top if given is None else given or None,
        )
        return gram.flatten(0, 1)

    @torch.no_grad()
    def _states(self, model: nn.Module, output: Batch) -> Tensor:
        """The last hidden states that predict each completion token, `[B, T, D]`."""
        ids, checkpointing = output["prompt_ids"], self.args.gradient_checkpointing_kwargs
        with self.accelerator.autocast(), disable_gradient_checkpointing(model, checkpointing):
            found = logps_in_chunks(
                model,
                *(output[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")),
                rows_per_chunk=self.args.per_device_train_batch_size,
                hidden_states=True,
                prefix_index=None if self._sharing else torch.arange(len(ids), device=ids.device),
            )
        if found.hidden_states is None:
            raise CalibrantError(
                f"the input 'head_gram' is read from the output head, and what that of {model_name(model)} "
                "reads cannot be recorded; choose another method"
            )
        return found.hidden_states


def readable_head(model: nn.Module, *, cast: bool = False) -> Head:
    """The output head of a causal language model, if its gradient follows from its inputs and its weight.

    `cast`: whether the trainer computes the head in another type than the model has.

    Raises:
        CalibrantError: the head is wrapped (by an adapter), quantised, cast, followed by a soft cap of the logits, or
            sharded.
    """
    head = find_head(model)
    weight, against = getattr(head.module, "weight", None), None
    if not isinstance(head.module, nn.Linear) or weight is None or not weight.is_floating_point() or weight.ndim != 2:
        against = f"is a {type(head.module).__name__} (an adapter or quantised weights?), not a plain linear layer"
    elif cast:
        against = "is cast to float32 (cast_lm_head_to_fp32)"
    elif head.softcap is not None:
        against = "is followed by a soft cap of its logits"
    if against:
        raise CalibrantError(
            f"the input 'head_gram' is read from the output head, and that of {model_name(model)} {against}; "
            "choose another method"
        )
    return head
