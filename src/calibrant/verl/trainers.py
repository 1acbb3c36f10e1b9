"""verl's v1 trainers with advantages that a method of `calibrant.methods` weighs."""

from pathlib import Path
from typing import Any, ClassVar

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import (
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)
from verl.workers.utils.padding import response_to_nested

from calibrant import method_state
from calibrant.advantages import standardised
from calibrant.methods import METHODS
from calibrant.scorer import Scored, batch_statistics, trainer_bases
from calibrant.verl import SECTION
from calibrant.verl.batch import Rollouts, field_names, first_values, layout_of, padded, rollouts_of_batch, spread_out
from calibrant.verl.seams import check_verl
from calibrant.verl.settings import calibration, check_config, read_settings

check_verl()


def section_of(config: DictConfig) -> dict[str, Any]:
    """What verl's configuration says under `calibrant`, as plain values."""
    section: Any = OmegaConf.to_container(config.get(SECTION) or OmegaConf.create({}), resolve=True)
    return section


def fields_of(batch: KVBatchMeta, names: list[str]) -> dict[str, Any]:
    """Those of the named fields that the queue has of the rows of a batch."""
    found = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    return {name: found[name] for name in found.keys()}  # noqa: SIM118 (a TensorDict)


def check(config: DictConfig) -> None:
    """Raises CalibrantError for a configuration that cannot be trained."""
    check_config(config, section_of(config))


class Calibrated:
    """Mixin before a trainer of verl's: its own GRPO first, whose advantages are then multiplied by weights.

    The method and its options are those of `VerlSettings`, in the section `calibrant` of the configuration. KL in the
    reward and rollout correction stay verl's. Of a group in which verl's advantages are not finite (one reward is NaN)
    the base is calibrant's own; `method="grpo"` keeps all of verl's.
    """

    mode: ClassVar[str]

    def __init__(self, config: DictConfig):
        check(config)
        with open_dict(config):  # verl compares it with its own names in many places
            config.trainer.v1.trainer_mode = self.mode
        self.calibration = calibration(read_settings(section_of(config)))
        self.method_state: dict[str, Tensor] = {}
        super().__init__(config)  # type: ignore[call-arg]

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        rollouts = self._read(batch)  # before verl, whose rollout correction takes tokens out of the mask
        batch = super()._compute_advantage(batch, metrics)  # type: ignore[misc]
        written = fields_of(batch, ["advantages", "response_mask", "rm_scores", "token_level_rewards"])
        before, mask = padded(written["advantages"]), padded(written["response_mask"]).bool()
        base = rollouts.layout.grouped(first_values(before, mask), fill=0.0)
        optimised = written.get("token_level_rewards", written["rm_scores"])  # the former with KL in the reward
        scored = self._score(rollouts, base, rollouts.layout.grouped(padded(optimised).sum(1)))
        self.method_state = dict(scored.outcome.state or self.method_state)
        statistics = batch_statistics(scored, self.calibration.reward_range)
        statistics["batch/unscorable"] -= float((~rollouts.layout.where).sum())  # of groups with fewer rollouts
        metrics.update({f"{SECTION}/{name}": value for name, value in statistics.items()})
        if self.calibration.scorer.method is METHODS["grpo"]:
            return batch
        after = spread_out(scored.outcome.advantages, rollouts.layout, mask, before)
        nested = response_to_nested(after, written["response_mask"])
        fields = TensorDict({"advantages": nested, "returns": nested.clone()}, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _read(self, batch: KVBatchMeta) -> Rollouts:
        named, task_reward = self.calibration.scorer.named, self.calibration.task_reward
        fields, layout = fields_of(batch, field_names(named, task_reward)), layout_of(batch.keys, batch.tags)
        return rollouts_of_batch(fields, layout, named, self._decode, task_reward)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)  # type: ignore[attr-defined]
        return text

    def _score(self, rollouts: Rollouts, base: Tensor, total: Tensor) -> Scored:
        base = torch.where(base.isfinite(), base, standardised(total).to(base))
        return self.calibration.scorer(
            rollouts.completions,
            rollouts.rewards,
            answers=[self.calibration.extract(text) for text in rollouts.completions],
            references=rollouts.references,
            given=rollouts.given | {"total_rewards": total},
            state=self.method_state,
            bases=trainer_bases(base, total),
        )

    def _save_checkpoint(self) -> None:
        """Saves the method's state too, before verl marks the checkpoint as the latest."""
        folder = Path(self.config.trainer.default_local_dir, f"global_step_{self.global_steps}")  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        method_state.save(self.method_state, folder)
        super()._save_checkpoint()  # type: ignore[misc]

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()  # type: ignore[misc]
        trainer, step = self.config.trainer, self.global_steps  # type: ignore[attr-defined]
        if step:
            latest = Path(trainer.default_local_dir, f"global_step_{step}")
            resumed = trainer.resume_from_path if trainer.resume_mode == "resume_path" else latest
            self.method_state = method_state.load(Path(resumed))


@register_trainer("calibrant_sync")
class CalibratedSync(Calibrated, PPOTrainerSync):
    """verl's synchronous trainer, calibrated."""

    mode = "sync"


@register_trainer("calibrant_colocate_async")
class CalibratedColocateAsync(Calibrated, PPOTrainerColocateAsync):
    """verl's asynchronous trainer with rollouts on the same GPUs, calibrated."""

    mode = "colocate_async"


@register_trainer("calibrant_separate_async")
class CalibratedSeparateAsync(Calibrated, PPOTrainerSeparateAsync):
    """verl's asynchronous trainer with rollouts on GPUs of their own, calibrated."""

    mode = "separate_async"
