"""Inner products of the gradients of the policy's last block, for a batch of rollouts in training."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from calibrant.errors import CalibrantError
from calibrant.gradients.block import block_gram, check_block
from calibrant.policy.block import BlockInputs
from calibrant.policy.casts import weights_cast_once
from calibrant.trl.config import CalibratedGRPOConfig
from calibrant.trl.passes import Batch, whole_groups

TOKENS = ("prompt_ids", "prompt_mask", "completion_ids")


class BlockGradients:
    """Computes the input `block_gram` from what the last block of the policy that sampled read."""

    def __init__(self, policy: nn.Module, args: CalibratedGRPOConfig, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        if args.cast_lm_head_to_fp32:
            raise CalibrantError(
                "the input 'block_gram' is not computed with cast_lm_head_to_fp32; leave that out, or choose another "
                "method"
            )
        check_block(policy)

    def __call__(
        self, model: nn.Module, output: Batch, mask: Tensor, size: int, inputs: BlockInputs | None = None
    ) -> Tensor:
        """Inner products of each local rollout with the rollouts of its group, `[B, G]`, float64.

        Arguments as of `HeadGradients`; `inputs`: what the last block read; None: one more forward pass records it.
        """
        if any(name in output for name in ("pixel_values", "image_grid_thw")):
            raise CalibrantError(
                "the input 'block_gram' is not computed for prompts with images; choose another method"
            )
        batch = {name: output[name] for name in TOKENS} | {"completion_mask": mask}
        if len(mask) % size == 0:  # every process has as many rows, so groups are whole on each
            return self._gram(model, batch, size, inputs)
        rows, own = whole_groups(len(mask), size, self.accelerator)
        batch = {name: self._gathered(values)[rows] for name, values in batch.items()}
        return self._gram(model, batch, size, self._gathered_inputs(inputs, rows))[own]

    def _gram(self, model: nn.Module, batch: Batch, size: int, inputs: BlockInputs | None) -> Tensor:
        """`[B, G]` of whole groups."""
        groups = {name: rows.view(-1, size, rows.shape[1]) for name, rows in batch.items()}
        with self.accelerator.autocast(), weights_cast_once(self.accelerator.unwrap_model(model)):
            return block_gram(model, groups, inputs=inputs, temperature=self.args.temperature).flatten(0, 1)

    def _gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes; what pads them counts nowhere."""
        gathered: Tensor = self.accelerator.gather(self.accelerator.pad_across_processes(rows, dim=1))
        return gathered

    def _gathered_inputs(self, inputs: BlockInputs | None, rows: slice = slice(None)) -> BlockInputs | None:
        """Those of some rows of all processes, each row with its own copy of its prompt's; None if one has none."""
        missing = self.accelerator.gather(torch.tensor([int(inputs is None)], device=self.accelerator.device))
        if inputs is None or bool(missing.any()):
            return None
        prompts, where = inputs.prompts[inputs.which], inputs.where[inputs.which]
        prompts, where, rollouts = (self._gathered(x)[rows] for x in (prompts, where.long(), inputs.rollouts))
        return BlockInputs(prompts, where.bool(), where.new_ones(len(where)).cumsum(0) - 1, rollouts)
