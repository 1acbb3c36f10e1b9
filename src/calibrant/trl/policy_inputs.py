"""What the models say of a batch of rollouts: log-probabilities, entropies, the answer under a slow reference."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head

from calibrant.policy.decode import Decoded
from calibrant.policy.head import find_head, token_logps
from calibrant.policy.likelihoods import answer_confidence, row_mean
from calibrant.policy.references import SlowReference, frozen
from calibrant.text.masks import answer_masks
from calibrant.trl.head_gradients import HeadGradients

FROM_STATES = ("mean_logprob", "token_entropy", "head_gram")
"""The inputs that follow from what the output head of the sampling policy reads."""
MULTIMODAL = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


class PolicyInputs:
    """Computes the inputs of a method that need a model, each only if the method names it.

    All log-probabilities are of the tempered policy, as TRL's are: the logits are divided by the sampling temperature.
    What was read while sampling is not computed again.

    Attributes:
        decoded: what was sampled last; the trainer puts it there.
        reads_states: whether a method needs what is recorded while sampling.

    Args:
        trainer: whose policy it is; its own reference is used where it has one (`beta > 0`).
        named: the inputs that the method names.
    """

    def __init__(self, trainer: Any, named: Sequence[str]):
        self.trainer, self.named = trainer, named
        self.decoded, self.reads_states = Decoded(), bool(set(FROM_STATES) & set(named))
        policy = trainer.accelerator.unwrap_model(trainer.model)
        self.frozen = self.slow = None
        if "ref_mean_logprob" in named and trainer.beta == 0.0:
            self.frozen = self._scoring(frozen(policy))
        if "answer_confidence" in named:
            self.slow = SlowReference(policy, trainer.args.ema_decay, trainer.args.ema_every)
            self._scoring(self.slow.model)
            trainer.add_callback(_Follow(trainer, self.slow))
        self.head = HeadGradients(trainer) if "head_gram" in named else None

    def _scoring(self, model: Any) -> Any:
        """Gives a copy the head with which TRL computes log-probabilities."""
        base = getattr(model, "get_base_model", lambda: model)()
        cast = self.trainer.args.cast_lm_head_to_fp32
        add_fused_lm_head(base, temperature=self.trainer.temperature, cast_lm_head_to_fp32=cast)
        return model.to(self.trainer.accelerator.device)

    def __call__(self, output: dict[str, Any], answers: Sequence[str]) -> dict[str, Tensor]:
        """The inputs of a local batch, each `[B]`; `head_gram` is `[B, G]`, a row of the group's matrix each.

        Args:
            output: as TRL's `_generate_and_score_completions` returns it.
            answers: the extracted answer of each completion.
        """
        mask, found = completion_mask(output), {}
        states, self.decoded = self.decoded.states_of(output["completion_ids"], output["completion_mask"]), Decoded()
        if {"mean_logprob", "token_entropy"} & set(self.named):
            logps, entropies = self._of_policy(output, states)
            found["mean_logprob"] = row_mean(logps, mask)
            if entropies is not None:
                found["token_entropy"] = row_mean(entropies, mask)
        elif "old_per_token_logps" in output:
            found["mean_logprob"] = row_mean(output["old_per_token_logps"], mask)
        if self.frozen is not None:
            found["ref_mean_logprob"] = row_mean(self._per_token(self.frozen, output)[0], mask)
        elif "ref_per_token_logps" in output:
            found["ref_mean_logprob"] = row_mean(output["ref_per_token_logps"], mask)
        if self.slow is not None:
            found["answer_confidence"] = self._answer_confidence(output, mask, answers)
        if "ratio_variance" in self.named:
            found["ratio_variance"] = torch.zeros(len(mask), device=mask.device)  # the policy has not moved yet
        if self.head is not None:
            training = self.trainer.model.training
            size = self.trainer.num_generations if training else self.trainer.num_generations_eval
            found["head_gram"] = self.head(output, mask, size, states)
        return found

    def _of_policy(self, output: dict[str, Any], states: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and, if they are named, entropies of the policy that sampled, each `[B, T]`."""
        entropies = "token_entropy" in self.named
        if states is None:
            return self._per_token(self.trainer.model, output, entropies)
        kept = output["completion_mask"].bool()
        with torch.no_grad(), self.trainer.accelerator.autocast():
            found = token_logps(
                find_head(self.trainer.model), states[kept], output["completion_ids"][kept],
                temperature=self.trainer.temperature, entropies=entropies,
            )  # fmt: skip
        logps, spread = (x if x is None else x.new_zeros(kept.shape).masked_scatter(kept, x) for x in found)
        assert logps is not None
        return logps, spread

    def _answer_confidence(self, output: dict[str, Any], mask: Tensor, answers: Sequence[str]) -> Tensor:
        assert self.slow is not None
        spans = answer_masks(self.trainer.processing_class, output["completion_ids"], mask, answers)
        return answer_confidence(self._per_token(self.slow.model, output)[0], spans)

    def _per_token(self, model: Any, output: dict[str, Any], entropies: bool = False) -> tuple[Tensor, Tensor | None]:
        trainer, ids = self.trainer, torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        known = {name: output[name] for name in MULTIMODAL if name in output}
        with torch.no_grad(), disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs):
            logps, entropy, _ = trainer._get_per_token_logps_and_entropies(
                model,
                ids,
                mask,
                output["completion_ids"].size(1),
                batch_size=trainer.args.per_device_train_batch_size,
                compute_entropy=entropies,
                **known,
            )
        return logps, entropy


def completion_mask(output: dict[str, Any]) -> Tensor:
    """Which tokens the policy wrote: completion tokens without those of tools, `[B, T]`."""
    mask: Tensor = output["completion_mask"]
    return mask * output["tool_mask"] if "tool_mask" in output else mask


class _Follow(TrainerCallback):
    """Moves the slow reference after each optimisation step."""

    def __init__(self, trainer: Any, slow: SlowReference):
        self.trainer, self.slow = trainer, slow

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.slow.follow(self.trainer.accelerator.unwrap_model(self.trainer.model), state.global_step)
