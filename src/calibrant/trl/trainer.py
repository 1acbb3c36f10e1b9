"""TRL's GRPO trainer with calibrated advantages: it overrides methods of TRL's and copies none."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from calibrant import method_state
from calibrant.advantages import total_rewards
from calibrant.files import write_text
from calibrant.groups import assert_integrity
from calibrant.methods import METHODS, Method, apply, name_of, read_inputs, resolve_method
from calibrant.policy.prefill import shared_prefill
from calibrant.scorer import Scored, Scorer, batch_statistics, dry_run, options_of, per_rollout, trainer_bases
from calibrant.tasks.checked_rewards import Reward
from calibrant.text.inputs import TextGroups, VerdictFunction
from calibrant.text.readers import load_readers
from calibrant.trl.columns import DataRow, RolloutColumns, check_data, correctness, read_rows, settle_prompts
from calibrant.trl.config import CalibratedGRPOConfig, check_kernel, complete
from calibrant.trl.division import divided, gathered
from calibrant.trl.functions import count_unextracted, extract, extractor, guarded_clusters, guarded_judge
from calibrant.trl.model_card import policy_name, with_method
from calibrant.trl.notices import ClusterNotices, WeightNotice
from calibrant.trl.passes import (
    OF_RATIOS,
    Batch,
    GenerationBatch,
    completion_mask,
    local_rows,
    with_ratios,
)
from calibrant.trl.policy_inputs import Follow, PolicyInputs
from calibrant.trl.resampling import Draw, check_resampling, resampled
from calibrant.trl.rewards import Sampled, recorded_rewards, task_reward_index, unrewarded, warn_of_range
from calibrant.trl.rollout_files import RolloutFiles, model_columns
from calibrant.trl.shared_prompts import SharedPromptTrainer


class CalibratedGRPOTrainer(SharedPromptTrainer):
    """TRL's `GRPOTrainer` with updates scaled by a method of `calibrant.methods`.

    The advantage is `A~_i = A_i * w_i`, with TRL's advantage `A_i` and the method's weight `w_i`; a method may name
    another base advantage (`Outcome.base`) or give its own. Weights act on the policy term alone: with `beta > 0` a
    group of weight 0 still has its KL gradient. A group without reward spread has an advantage of exactly 0, where TRL
    leaves up to 4e-3 of rounding. `method="grpo"` keeps TRL's advantages, rounding included: with `share_prefix=False`
    the same seed gives TRL's losses and parameters bit for bit, with `share_prefix=True` (the default) they agree up to
    rounding: parameters within 4e-6 after 5 steps of the embedded policy in float32.

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
        check_kernel(trial, args, name_of(self.method))
        readers = load_readers(self._named, args, guarded_clusters(cluster, answer_key), None)
        self._memory: dict[str, Tensor] = {}
        self._warned_of_range = False
        rewarded = reward_funcs or keywords.get("environment_factory") is not None
        self._label_free = not rewarded and "rewards" not in self._named
        rewards = unrewarded if self._label_free else reward_funcs
        super().__init__(model, list(rewards) if isinstance(rewards, list) else rewards, args, *positional, **keywords)
        self._scorer = Scorer(
            *(self.method, options, self._clock.readers(divided(readers, self.accelerator))),
            meaning=args.meaning, cluster_text=args.cluster_text, strength=args.strength,
        )  # fmt: skip
        check_data(self.train_dataset)
        check_resampling(self.args, name_of(self.method), self.train_dataset)
        check_data(self.eval_dataset)
        self._task_reward = task_reward_index(self.args.task_reward, self.reward_func_names)
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
        read = self._clock.timed("policy_inputs", self._policy_inputs)(self.model, output, answers, size)
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
            if set(OF_RATIOS) & set(self._named):
                numbers = torch.arange(advantages.numel(), device=advantages.device)
                output["rollout_index"] = local_rows(numbers, len(rows), self.accelerator)
                self._batch = GenerationBatch(scored.groups, bases)
            output |= self._policy_inputs.constant_entropies(self.model, output)
            self._show(scored, columns, read, {"advantage_base": base, "advantage": advantages})
        return output

    def _show(
        self, scored: Scored, columns: RolloutColumns, read: dict[str, Tensor], trained: dict[str, Tensor]
    ) -> None:
        """Writes the rollout file of a step, and what there is to say about its clusters and weights."""
        step, size = self.state.global_step + 1, scored.groups.rewards.shape[1]
        if self._notices is not None:
            self._notices.see(scored.groups.inputs, scored.groups.where, step)
            self._weight_notice.see(scored)
        if self._files is not None:
            columns |= model_columns(read, columns["num_tokens"])
            columns |= {name: x.flatten().tolist() for name, x in trained.items()}
            columns |= {"reward": [None] * scored.groups.rewards.numel()} if self._label_free else {}
            self._files.write(step, scored, settle_prompts(columns, size))

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
        judge = self._judge
        if "correct" not in self._named and (mode != "train" or self.args.rollouts_dir == ""):
            judge = None

        def read() -> list[dict[str, Any]]:
            own = [
                row._asdict() | columns | extract(self._extractor, columns["completion"])._asdict()
                for row, columns in zip(rows, sampled.columns, strict=True)
            ]
            if judge is None:
                return own
            verdicts = judge([row["answer"] for row in own], [row["references"] for row in own])
            return [row | {"correct": verdict} for row, verdict in zip(own, verdicts, strict=True)]

        every = [row for own in gathered(read, self.accelerator) for row in own]
        columns = {name: [row[name] for row in every] for name in every[0]}
        failed = count_unextracted(self._extractor, columns.pop("problem"))
        self._metrics[mode][self._free("batch/unextracted")].append(float(failed))
        return columns

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
            method_state.save(self._memory, Path(output_dir))
        if self._policy_inputs.slow is not None:
            self._policy_inputs.slow.save(Path(output_dir), write=self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads weights; before that, references copy those of the policy before training."""
        self._policy_inputs.take_snapshots(self.model if model is None else model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            gathered(lambda: self._load_method(Path(checkpoint)), self.accelerator)

    def _load_method(self, checkpoint: Path) -> None:
        """Loads the method's state and the EMA reference of a checkpoint."""
        self._memory = {k: x.to(self.accelerator.device) for k, x in method_state.load(checkpoint).items()}
        if self._policy_inputs.slow is not None:
            self._policy_inputs.slow.load(checkpoint, self.accelerator.unwrap_model(self.model))

    def create_model_card(self, *arguments: object, **keywords: object) -> None:
        """Writes TRL's model card, with the method, its hyper-parameters and the papers to cite."""
        super().create_model_card(*arguments, **keywords)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "README.md"
            write_text(path, with_method(path.read_text(encoding="utf-8"), self.method, self._scorer.options))
