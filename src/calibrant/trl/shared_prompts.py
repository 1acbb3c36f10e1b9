"""TRL's GRPO trainer with each prompt computed once for its rollouts, and its parts timed."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer

from calibrant.policy import logps_in_chunks, reads_head
from calibrant.policy.head import is_sharded
from calibrant.trl.batches import along_groups, contributing, in_order
from calibrant.trl.clock import Clock
from calibrant.trl.config import CalibratedGRPOConfig
from calibrant.trl.passes import MULTIMODAL, Batch, Pass, merged, model_inputs


class SharedPromptTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with log-probabilities from shared prompts; rows without a gradient get no pass.

    A subclass says in `_reweighed` what the advantages of a batch are once the policy has moved.
    """

    _buffered_inputs: Any

    def __init__(
        self, model: PreTrainedModel | str, reward_funcs: Any, args: CalibratedGRPOConfig, *others: Any, **keywords: Any
    ):
        self._clock = Clock()
        self._sharing = args.share_prefix and not args.cast_lm_head_to_fp32
        self._pass: Pass | None = None  # what TRL's `_compute_loss` is given in place of a forward pass
        self._window: list[Batch] = []  # micro-batches of this optimizer step that have been computed
        super().__init__(model, reward_funcs, args, *others, **keywords)
        self.accelerator.backward = self._clock.timed("backward", self.accelerator.backward)
        self._taken = set(self.reward_func_names)  # names that reward functions log under

    def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
        """TRL's training step; after the last one of an optimizer step, `seconds/...` are logged."""
        if self._step % self.args.gradient_accumulation_steps == 0:
            self._clock.taken()  # what an evaluation took
        loss: Tensor = super().training_step(*arguments, **keywords)
        if self._step % self.current_gradient_accumulation_steps == 0:
            for name, seconds in self._clock.taken().items():
                self._metrics["train"][self._free(f"seconds/{name}")].append(seconds)
        return loss

    def _calculate_rewards(self, *arguments: Any, **keywords: Any) -> Tensor:
        with self._clock.part("rewards"):
            rewards: Tensor = super()._calculate_rewards(*arguments, **keywords)
        return rewards

    def _free(self, name: str) -> str:
        """The name of a metric or column of ours, with a prefix where a reward function logs under the same."""
        return f"calibrant_{name}" if name in self._taken else name

    def _prepare_inputs(self, generation_batch: object) -> Batch:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        new, passes = self._buffered_inputs, self.args.gradient_accumulation_steps
        if new is before or not self._free_to_arrange(inputs):
            return inputs
        window = min(passes, len(new))
        if window > 1 and max(passes, len(new)) % window == 0:
            self._buffered_inputs, self._window = along_groups(new, window), []
        return self._buffered_inputs[self._step % len(new)]

    def _free_to_arrange(self, inputs: Batch) -> bool:
        """Whether rows may be ordered and left out: prompts are shared, and the gradient of a step is a sum over rows.

        It is not where a statistic of a micro-batch is part of the loss.
        """
        by_micro_batch = self.loss_type == "bnpo" or self.top_entropy_quantile < 1.0 or self._entropy_bonus_enabled
        by_micro_batch = by_micro_batch or self.aux_loss_enabled or self.args.use_liger_kernel
        return self._sharing and not by_micro_batch and not any(name in inputs for name in MULTIMODAL)

    def _compute_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        """TRL's loss, with the log-probabilities computed first; its metrics are means over TRL's own micro-batches."""
        moved = "rollout_index" in inputs and "old_per_token_logps" in inputs
        if not self.model.training or not (moved or self._free_to_arrange(inputs)):
            return super()._compute_loss(model, inputs)
        if moved:
            computed = self._computed(model, inputs)
            inputs = inputs | {"advantages": self._reweighed(inputs, computed.logps)}
        else:
            computed = self._forward(model, inputs)
        if "position" not in inputs:
            return self._loss(model, inputs, computed)
        rest = {"logps": computed.logps.detach(), "entropies": computed.entropies.detach()}
        self._window.append(inputs | rest)
        metrics, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        loss = self._loss(model, inputs, computed)
        self._metrics["train"] = metrics
        if len(self._window) == inputs["window"]:
            with torch.no_grad():  # TRL's metrics, of the micro-batches before their rows were ordered
                for batch in in_order(self._window):
                    self._loss(model, batch, Pass(batch["logps"], batch["entropies"]))
            self._window = []
        return loss

    def _loss(self, model: nn.Module, inputs: Batch, computed: Pass) -> Tensor:
        """TRL's loss of a micro-batch whose log-probabilities are known."""
        self._pass = computed
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self._pass = None
        return loss

    def _forward(self, model: nn.Module, inputs: Batch) -> Pass:
        """Computes a micro-batch; rows with an advantage of 0 without a gradient, if no other term gives them one."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled or is_sharded(model)
        if self.beta != 0.0 or sharded:  # processes have to run equally many passes
            return self._computed(model, inputs)
        needed = contributing(inputs["advantages"], inputs["completion_mask"].sum(1))
        self._metrics["train"][self._free("batch/left_out")].append(1 - needed.float().mean().item())
        if needed.all():
            return self._computed(model, inputs)
        if "constant_entropies" in inputs:  # what their log-probabilities are does not matter: the ratio is 1
            entropies = inputs["constant_entropies"][~needed]
            others = Pass(torch.zeros_like(entropies), entropies)
        else:
            with torch.no_grad():
                others = self._computed(model, inputs, ~needed)
        return merged(needed, self._computed(model, inputs, needed), others)

    def _computed(self, model: nn.Module, inputs: Batch, rows: Tensor | slice = slice(None)) -> Pass:
        """Log-probabilities and entropies of a micro-batch, or of some of its rows."""
        options = {"compute_entropy": True, "compute_aux_loss": self.aux_loss_enabled}
        return Pass(*self._get_per_token_logps_and_entropies(model, **model_inputs(inputs, rows), **options))

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **keywords: object,
    ) -> Any:
        if self._pass is not None:
            return self._pass
        images = any(x is not None for x in keywords.values())
        part = self._clock.part("forward" if torch.is_grad_enabled() else "log_probabilities")
        if not self._sharing or compute_aux_loss or images or not reads_head(model):
            given = (model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss)
            with part:
                return super()._get_per_token_logps_and_entropies(*given, **keywords)
        widths = [input_ids.shape[1] - logits_to_keep, logits_to_keep]
        (prompts, completions), (asked, written) = (x.split(widths, dim=1) for x in (input_ids, attention_mask))
        with part, self.accelerator.autocast():
            found = logps_in_chunks(
                model,
                *(prompts, asked, completions, written),
                rows_per_chunk=batch_size or len(input_ids),
                temperature=self.temperature,
                entropies=compute_entropy,
            )
        return found.logps, found.entropies, None

    def _reweighed(self, inputs: Batch, logps: Tensor) -> Tensor:
        """The advantages of a micro-batch by the log-probabilities of the policy that has moved."""
        raise NotImplementedError
