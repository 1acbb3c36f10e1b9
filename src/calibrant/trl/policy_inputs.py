"""Inputs of methods from models: log-probabilities, entropies, the likelihood of the answer under an EMA reference."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState
from trl.models.utils import disable_gradient_checkpointing

from calibrant.errors import CalibrantError
from calibrant.methods.inputs import TOKEN_INPUTS
from calibrant.policy.decode import Decoded
from calibrant.policy.head import find_head, token_logps
from calibrant.policy.likelihoods import answer_likelihood, row_mean
from calibrant.policy.references import InitialReference, Sharding, SlowReference
from calibrant.text.masks import answer_masks
from calibrant.trl.block_gradients import BlockGradients
from calibrant.trl.config import CalibratedGRPOConfig
from calibrant.trl.head_gradients import HeadGradients
from calibrant.trl.passes import Batch, completion_mask, model_inputs

OF_TOKENS = ("token_entropy", *TOKEN_INPUTS)
FROM_STATES = ("mean_logprob", *OF_TOKENS, "head_gram", "block_gram")
"""The inputs that follow from what the output head or the last block of the sampling policy reads."""


class PolicyInputs:
    """Computes the inputs of a method that need a model, each only if the method names it.

    All log-probabilities are of the tempered policy, as TRL's are: the logits are divided by the sampling temperature.
    States that were recorded while sampling are not computed again.

    Attributes:
        decoded: what was sampled last; the trainer sets it.
        reads_states: whether the method needs states that are recorded while sampling.

    `named` are the inputs that the method names, `per_token` is TRL's `_get_per_token_logps_and_entropies`, `policy`
    the model without wrappers.
    """

    def __init__(
        self,
        policy: nn.Module,
        args: CalibratedGRPOConfig,
        accelerator: Accelerator,
        *,
        named: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        per_token: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]],
    ):
        self.args, self.accelerator, self.named = args, accelerator, named
        self.tokenizer, self.per_token = tokenizer, per_token
        self.decoded, self.reads_states = Decoded(), bool(set(FROM_STATES) & set(named)) or args.beta == 0.0
        sharded = sharding(accelerator)
        initial = "ref_mean_logprob" in named and args.beta == 0.0  # with beta > 0 TRL computes it
        self.initial = InitialReference(policy, sharded) if initial else None
        slow = "answer_confidence" in named
        self.slow = SlowReference(policy, args.ema_decay, args.ema_every, sharded) if slow else None
        if sharded and (grams := {"head_gram", "block_gram"} & set(named)):
            raise CalibrantError(
                f"the input '{min(grams)}' is read from weights that FSDP or ZeRO-3 shards; train with DDP or ZeRO-2, "
                "or choose another method"
            )
        self.head = HeadGradients(policy, args, accelerator) if "head_gram" in named else None
        self.block = BlockGradients(policy, args, accelerator) if "block_gram" in named else None

    def take_snapshots(self, model: nn.Module) -> None:
        """Lets references copy the values of a model that are not copied yet, before others are loaded into it."""
        for reference in (self.initial, self.slow):
            if reference is not None:
                reference.take_snapshot(model)

    def __call__(self, model: nn.Module, output: Batch, answers: Sequence[str], size: int) -> dict[str, Tensor]:
        """The inputs of a local batch, each `[B]`; `head_gram` and `block_gram` are `[B, G]`, rows of the matrices.

        `output` is what TRL's `_generate_and_score_completions` returns on this process; `size` is G.
        """
        mask, found = completion_mask(output), {}
        states = self.decoded.states_of(output["completion_ids"], output["completion_mask"])
        if {"mean_logprob", *OF_TOKENS} & set(self.named):
            logps, entropies = self._of_policy(model, output, states)
            found["mean_logprob"] = row_mean(logps, mask)
            if entropies is not None:
                found["token_entropy"] = row_mean(entropies, mask)
            per_token = {"token_logprobs": logps, "token_entropies": entropies, "token_log_ratios": 0.0 * logps}
            for name, values in per_token.items():
                if name in self.named and values is not None:
                    found[name] = values.masked_fill(~mask.bool(), torch.nan)
        elif "old_per_token_logps" in output:
            found["mean_logprob"] = row_mean(output["old_per_token_logps"], mask)
        if self.initial is not None:
            found["ref_mean_logprob"] = row_mean(self._of_reference(self.initial, model, output), mask)
        elif "ref_per_token_logps" in output:
            found["ref_mean_logprob"] = row_mean(output["ref_per_token_logps"], mask)
        if self.slow is not None:
            spans = answer_masks(self.tokenizer, output["completion_ids"], mask, answers)
            found["answer_confidence"] = answer_likelihood(self._of_reference(self.slow, model, output), spans)
        if "ratio_variance" in self.named:
            found["ratio_variance"] = torch.zeros(len(mask), device=mask.device)  # the policy has not moved yet
        if self.head is not None:
            found["head_gram"] = self.head(model, output, mask, size, states)
        if self.block is not None:
            inputs = self.decoded.block_inputs_of(output["completion_ids"], output["completion_mask"])
            found["block_gram"] = self.block(model, output, mask, size, inputs)
        return found

    def constant_entropies(self, model: nn.Module, output: Batch) -> dict[str, Tensor]:
        """`constant_entropies [B, T]` of rows with an advantage of 0, which then need no pass for TRL's metric.

        Empty where the policy will have moved by the time that it is updated on these rows, and where no states were
        recorded while sampling; they are forgotten.
        """
        states, self.decoded = self.decoded.states_of(output["completion_ids"], output["completion_mask"]), Decoded()
        if states is None or self.args.beta != 0.0 or "old_per_token_logps" in output:
            return {}
        constant = (output["advantages"].view(len(states), -1) == 0).all(1)
        kept = output["completion_mask"].bool() & constant[:, None]
        entropies = self._from_states(model, output, states, kept, True)[1]
        assert entropies is not None
        return {"constant_entropies": entropies}

    def _of_policy(self, model: nn.Module, output: Batch, states: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and, if they are named, entropies of the policy that sampled, each `[B, T]`."""
        entropies = bool({"token_entropy", "token_entropies"} & set(self.named))
        if states is None and not entropies and "old_per_token_logps" in output:
            return output["old_per_token_logps"], None
        if states is None:
            return self._per_token(model, output, entropies)
        return self._from_states(model, output, states, output["completion_mask"].bool(), entropies)

    def _of_reference(self, reference: InitialReference | SlowReference, model: nn.Module, output: Batch) -> Tensor:
        with reference.in_place(self.accelerator.unwrap_model(model)):
            return self._per_token(model, output)[0]

    def _from_states(
        self, model: nn.Module, output: Batch, states: Tensor, kept: Tensor, entropies: bool
    ) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad(), self.accelerator.autocast():
            found = token_logps(
                find_head(model), states[kept], output["completion_ids"][kept],
                temperature=self.args.temperature, entropies=entropies,
            )  # fmt: skip
        logps, entropy = (x if x is None else x.new_zeros(kept.shape).masked_scatter(kept, x) for x in found)
        assert logps is not None
        return logps, entropy

    def _per_token(self, model: nn.Module, output: Batch, entropies: bool = False) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad(), disable_gradient_checkpointing(model, self.args.gradient_checkpointing_kwargs):
            logps, entropy, _ = self.per_token(
                model,
                **model_inputs(output),
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=entropies,
            )
        return logps, entropy


def sharding(accelerator: Accelerator) -> Sharding:
    """How an accelerator shards the weights of models that it prepares."""
    kind, state = accelerator.distributed_type, accelerator.state
    if kind == DistributedType.FSDP:
        return "FSDP2" if state.fsdp_plugin.fsdp_version == 2 else "FSDP1"
    return "ZeRO-3" if kind == DistributedType.DEEPSPEED and state.deepspeed_plugin.zero_stage == 3 else ""


class Follow(TrainerCallback):
    """Updates the EMA reference after each optimizer step."""

    def __init__(self, slow: SlowReference, accelerator: Accelerator):
        self.slow, self.accelerator = slow, accelerator

    def on_step_end(self, args: object, state: TrainerState, control: object, *, model: nn.Module, **_: object) -> None:
        self.slow.follow(self.accelerator.unwrap_model(model), state.global_step)
