"""TRL's GRPO trainer with calibrated advantages: it overrides methods of TRL's and copies none."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from calibrant.advantages import total_rewards
from calibrant.errors import CalibrantError
from calibrant.files import write_text
from calibrant.groups import assert_integrity
from calibrant.methods import METHODS, Method, apply, name_of, read_inputs, resolve_method
from calibrant.policy import logps_in_chunks, reads_head
from calibrant.policy.prefill import shared_prefill
from calibrant.scorer import Scored, Scorer, batch_statistics, dry_run, options_of, per_rollout, trainer_bases
from calibrant.tasks.checked_rewards import Reward
from calibrant.text.inputs import TextGroups, VerdictFunction
from calibrant.text.readers import load_readers
from calibrant.trl import memory
from calibrant.trl.batches import along_groups, contributing, in_order
from calibrant.trl.clock import Clock
from calibrant.trl.columns import DataRow, RolloutColumns, check_data, correctness, read_rows, settle_prompts
from calibrant.trl.config import CalibratedGRPOConfig, complete
from calibrant.trl.functions import count_unextracted, extract, extractor, guarded_clusters, guarded_judge
from calibrant.trl.model_card import policy_name, with_method
from calibrant.trl.notices import ClusterNotices, WeightNotice
from calibrant.trl.passes import (
    MULTIMODAL,
    OF_RATIOS,
    Batch,
    GenerationBatch,
    Pass,
    completion_mask,
    local_rows,
    merged,
    model_inputs,
    with_ratios,
)
from calibrant.trl.policy_inputs import Follow, PolicyInputs
from calibrant.trl.resampling import Draw, check_resampling, resampled
from calibrant.trl.rewards import Sampled, recorded_rewards, task_reward_index, unrewarded, warn_of_range
from calibrant.trl.rollout_files import RolloutFiles, model_columns


class CalibratedGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with updates scaled by a method of `calibrant.methods`.

    The advantage is `A~_i = A_i * w_i`, with TRL's advantage `A_i` and the method's weight `w_i`; a method may name
    another base advantage (`Outcome.base`) or give its own. Weights act on the policy term alone: with `beta > 0` a
    group of weight 0 still has its KL gradient. A group without reward spread has an advantage of exactly 0, where TRL
    leaves up to 4e-3 of rounding. `method="grpo"` keeps TRL's advantages, rounding included: with `share_prefix=False`
    the same seed gives TRL's losses and parameters bit for bit, with `share_prefix=True` (the default) they agree up to
    rounding: parameters within 2e-6 after 5 steps of the embedded policy in float32.

    The inputs that a method names are computed from the texts or the models, and no others.

    Args:
        model, reward_funcs, args, ...: as in `GRPOTrainer`; a plain `GRPOConfig` gets the defaults of
            `CalibratedGRPOConfig`. A method that names no rewards trains without `reward_funcs`.
        extract_answer: completion -> answer; strips white space when None.
        answer_key: answer -> string, equal for answers with one meaning; SQuAD normalisation when None.
        cluster: N groups of G texts -> cluster numbers `[N, G]`, where comparing keys is not enough, e.g.
            `functools.partial(symbolic_clusters, verifier=Verifier())`; an entailment model takes precedence.
        is_correct: (answer, references) -> bool, with the column `references` of the data.
        judge: the same for a whole batch: answers and lists of references -> verdicts, None where there is none.

    Raises:
        CalibrantError: an unknown method or hyper-parameter, an input that nothing supplies, an embedding or
            entailment model that cannot be loaded; in training, a function of the user that fails, or rollouts of a
            group that come from different rows of the data set.
    """

    _tag_names: ClassVar[list[str]] = [*GRPOTrainer._tag_names, "calibrant"]
    _buffered_inputs: Any
    _batch: GenerationBatch

    def __init__(
        self,
        model: PreTrainedModel | str,
        reward_funcs: Reward | str | list[Reward | str] | None = None,
        args: GRPOConfig | None = None,
        *positional: object,
        extract_answer: Callable[[str], str] | None = None,
        answer_key: Callable[[str], str] | None = None,
        cluster: Callable[[TextGroups], Tensor] | None = None,
        is_correct: Callable[[str, list[str]], bool] | None = None,
        judge: VerdictFunction | None = None,
        **keywords: object,
    ):
        args = args or CalibratedGRPOConfig(f"{policy_name(model)}-CalibratedGRPO")
        complete(args)
        self.method: Method = resolve_method(args.method)
        options = options_of(self.method, args)
        self._named = read_inputs(self.method, options)
        self._judge, self._extractor = guarded_judge(is_correct, judge), extractor(extract_answer)
        trial = dry_run(self.method, options, () if self._judge else ("correct",), args.strength)
        if trial.weights.ndim > 2 and args.use_liger_kernel:
            raise CalibrantError(
                f"method '{name_of(self.method)}' has weights per token, which the Liger kernel's loss cannot take; "
                "set use_liger_kernel to False"
            )
        self._clock = Clock()
        readers = self._clock.readers(load_readers(self._named, args, guarded_clusters(cluster, answer_key), None))
        self._scorer = Scorer(
            *(self.method, options, readers),
            meaning=args.meaning, cluster_text=args.cluster_text, strength=args.strength,
        )  # fmt: skip
        self._memory: dict[str, Tensor] = {}
        self._warned_of_range = False
        self._sharing = args.share_prefix and not args.cast_lm_head_to_fp32
        self._pass: Pass | None = None  # what TRL's `_compute_loss` is given in place of a forward pass
        self._window: list[Batch] = []  # micro-batches of this optimizer step that have been computed
        rewarded = reward_funcs or keywords.get("environment_factory") is not None
        self._label_free = not rewarded and "rewards" not in self._named
        rewards = unrewarded if self._label_free else reward_funcs
        super().__init__(model, list(rewards) if isinstance(rewards, list) else rewards, args, *positional, **keywords)
        self.accelerator.backward = self._clock.timed("backward", self.accelerator.backward)
        check_data(self.train_dataset)
        check_resampling(self.args, name_of(self.method), self.train_dataset)
        check_data(self.eval_dataset)
        self._task_reward = task_reward_index(self.args.task_reward, self.reward_func_names)
        self._taken = set(self.reward_func_names)  # names that reward functions log under
        self._policy_inputs = PolicyInputs(
            self.accelerator.unwrap_model(self.model),
            *(self.args, self.accelerator),
            named=self._named,
            tokenizer=self.processing_class,
            per_token=self._get_per_token_logps_and_entropies,
        )
        if self._policy_inputs.slow is not None:
            self.add_callback(Follow(self._policy_inputs.slow, self.accelerator))
        self._notices = None
        if self.accelerator.is_main_process:
            self._notices = ClusterNotices(name_of(self.method), args.entailment_model)
            self._weight_notice = WeightNotice(self.method)
        writes = self.args.rollouts_dir != "" and self.accelerator.is_main_process
        self._files = RolloutFiles(self.args.rollouts_dir, self.args.output_dir) if writes else None

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

    def _generate_single_turn(self, *arguments: object, **keywords: object) -> Any:
        with ExitStack() as stack:
            stack.enter_context(self._clock.part("generation"))
            if not self.use_vllm and self._sharing:
                policy, inputs = self.accelerator.unwrap_model(self.model_wrapped), self._policy_inputs
                stack.enter_context(self.accelerator.autocast())
                records = {"states": inputs.reads_states, "block": inputs.block is not None}
                inputs.decoded = stack.enter_context(shared_prefill(policy, **records))
            return super()._generate_single_turn(*arguments, **keywords)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        rows = read_rows(inputs)
        mode = "train" if self.model.training else "eval"
        size = self.num_generations if mode == "train" else self.num_generations_eval
        draw = self._draw(inputs)
        if mode == "train" and self.args.resample_uninformative:
            draw = self._resampled(draw)
            rows = read_rows(draw.inputs)
        output, sampled = draw.output, draw.sampled
        columns, rewards = self._gather_columns(rows, sampled, mode), sampled.rewards
        assert_integrity(columns.pop("key"), size)
        answers = local_rows(columns["answer"], len(rows), self.accelerator)
        read = self._policy_inputs(self.model, output, answers, size)
        read = {name: self._gathered(x) for name, x in read.items()} | correctness(columns, rewards.device)
        given = {name: x.view(-1, size, *x.shape[1:]) for name, x in read.items()}
        per_function = rewards.view(-1, size, rewards.shape[1])
        total = self._total(per_function)
        standardised = self.accelerator.gather(output["advantages"]).view(-1, size)
        bases = trainer_bases(standardised, total)
        scored = self._clock.timed("scores", self._scorer)(
            columns["completion"],
            per_function[..., self._task_reward],
            answers=columns["answer"],
            given=given | {"total_rewards": total},
            state=self._memory,
            bases=bases,
        )
        base, advantages = scored.outcome.base, scored.outcome.advantages
        if self.method is METHODS["grpo"]:  # TRL to the bit, with what its rounding leaves in groups without spread
            base = advantages = standardised
        own = local_rows(advantages.flatten(0, 1), len(rows), self.accelerator)
        output["advantages"] = own[:, : output["completion_ids"].shape[1]] if own.ndim > 1 else own
        base, advantages = (per_rollout(x, scored.groups.inputs) for x in (base, advantages))
        self._log_scores(mode, scored, advantages)
        if mode == "train":
            self._memory = dict(scored.outcome.state or self._memory)
            if self._notices is not None:
                self._notices.see(scored.groups.inputs, scored.groups.where, self.state.global_step + 1)
                self._weight_notice.see(scored)
            if set(OF_RATIOS) & set(self._named):
                numbers = torch.arange(advantages.numel(), device=advantages.device)
                output["rollout_index"] = local_rows(numbers, len(rows), self.accelerator)
                self._batch = GenerationBatch(scored.groups, bases)
            output |= self._policy_inputs.constant_entropies(self.model, output)
            if self._files is not None:
                columns |= model_columns(read, columns["num_tokens"])
                columns |= {"advantage_base": base.flatten().tolist(), "advantage": advantages.flatten().tolist()}
                columns |= {"reward": [None] * advantages.numel()} if self._label_free else {}
                self._files.write(self.state.global_step + 1, scored, settle_prompts(columns, size))
        return output

    def _draw(self, inputs: list[dict[str, Any]]) -> Draw:
        with recorded_rewards(self) as sampled:
            output: Batch = super()._generate_and_score_completions(inputs)
        return Draw(inputs, output, sampled[-1])

    def _resampled(self, first: Draw) -> Draw:
        """The draw of a step with groups without reward spread replaced by others, which are counted."""
        step, pad = self.state.global_step, self._tokenizer.pad_token_id
        found, drawn = resampled(
            *(first, self._draw, self._total, self.train_dataset, self.args, step, self.accelerator, pad)
        )
        self._metrics["train"][self._free("batch/resampled")].append(float(drawn))
        return found

    def _total(self, per_function: Tensor) -> Tensor:
        """The reward that is optimised `[N, G]`, of those of each function."""
        return total_rewards(per_function, self.reward_weights, self.multi_objective_aggregation)

    def _gather_columns(self, rows: list[DataRow], sampled: Sampled, mode: str) -> RolloutColumns:
        """Columns of N * G values: what was asked, sampled, extracted and judged, each once per rollout and step."""
        self._taken |= sampled.logged
        own = [
            row._asdict() | columns | extract(self._extractor, columns["completion"])._asdict()
            for row, columns in zip(rows, sampled.columns, strict=True)
        ]
        if self._judge and ("correct" in self._named or (mode == "train" and self.args.rollouts_dir != "")):
            verdicts = self._judge([row["answer"] for row in own], [row["references"] for row in own])
            own = [row | {"correct": verdict} for row, verdict in zip(own, verdicts, strict=True)]
        gathered = gather_object(own)
        columns = {name: [row[name] for row in gathered] for name in gathered[0]}
        failed = count_unextracted(self._extractor, columns.pop("problem"))
        self._metrics[mode][self._free("batch/unextracted")].append(float(failed))
        return columns

    def _free(self, name: str) -> str:
        """The name of a metric or column of ours, with a prefix where a reward function logs under the same."""
        return f"calibrant_{name}" if name in self._taken else name

    def _log_scores(self, mode: str, scored: Scored, advantages: Tensor) -> None:
        statistics = batch_statistics(scored, self.args.reward_range)
        for name, value in statistics.items():
            self._metrics[mode][self._free(name)].append(value)
        weights = per_rollout(scored.outcome.weights, scored.groups.inputs)
        self._logs["extra"][self._free("weight")].extend(weights.flatten().tolist())
        logged = self._logs["advantages"]  # of bounded length; TRL has just added its own
        for _ in range(min(len(logged), advantages.numel())):
            logged.pop()
        logged.extend(advantages.flatten().tolist())
        outside = int(statistics["batch/reward_out_of_range"])
        if outside and not self._warned_of_range and self.accelerator.is_main_process:
            self._warned_of_range = True
            warn_of_range(outside, self.args.reward_range, self.state.global_step + 1)

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
        together = self.is_fsdp_enabled or self.is_deepspeed_enabled  # processes have to run equally many passes
        if self.beta != 0.0 or together:
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
        """The advantages of a micro-batch by the ratio to the policy that sampled, `[B]` or `[B, T]`."""
        rows, old = inputs["rollout_index"], inputs["old_per_token_logps"]
        groups = with_ratios(self._batch.groups, rows, logps, old, completion_mask(inputs))
        outcome = apply(self.method, groups, self._memory, bases=self._batch.bases, **self._scorer.options)
        values = {name: groups.inputs[name].flatten(0, 1)[rows].abs() for name in OF_RATIOS if name in groups.inputs}
        values["update_weight"] = per_rollout(outcome.weights, groups.inputs).flatten()[rows]
        for name, x in values.items():
            mean = self.accelerator.gather(x.nanmean()).nanmean().item()
            self._metrics["train"][self._free(f"batch/{name}/mean")].append(mean)
        advantages = outcome.advantages.flatten(0, 1)[rows]
        return advantages[:, : old.shape[1]] if advantages.ndim > 1 else advantages

    def _gathered(self, values: Tensor) -> Tensor:
        """Rows of all processes; those per token are padded to the longest completion of all."""
        if values.ndim > 1:
            values = self.accelerator.pad_across_processes(values, dim=1, pad_index=torch.nan)
        gathered: Tensor = self.accelerator.gather(values)
        return gathered

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Saves the method's state and the EMA reference too, before a checkpoint is pushed to the hub."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            memory.save(self._memory, Path(output_dir))
            if self._policy_inputs.slow is not None:
                self._policy_inputs.slow.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._memory = {k: x.to(self.accelerator.device) for k, x in memory.load(Path(checkpoint)).items()}
            if self._policy_inputs.slow is not None:
                self._policy_inputs.slow.load(Path(checkpoint))

    def create_model_card(self, *arguments: object, **keywords: object) -> None:
        """Writes TRL's model card, with the method, its hyper-parameters and the papers to cite."""
        super().create_model_card(*arguments, **keywords)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "README.md"
            write_text(path, with_method(path.read_text(encoding="utf-8"), self.method, self._scorer.options))
