"""Methods through verl's own `_compute_advantage` and a real TransferQueue, beside `apply` on the same rollouts."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
import transfer_queue as tq
from by_hand import ANSWERS, advantages_of, directly, directly_with_state, made_rows, queued, sum_of, trainer_of
from hydra import compose, initialize_config_module
from main_ppo import Places
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer
from verl.trainer.ppo import core_algos

from calibrant.methods import METHODS, read_inputs
from calibrant.verl.settings import LACKING

REACHABLE = [name for name, method in METHODS.items() if not set(read_inputs(method)) & set(LACKING)]


@pytest.fixture(scope="module")
def configuration() -> Iterator[DictConfig]:
    """verl's configuration, with Ray and the queue running."""
    ray.init(address="local", include_dashboard=False, num_cpus=6, object_store_memory=200_000_000, log_to_driver=False)
    overrides = ["transfer_queue.enable=True", "transfer_queue.backend.SimpleStorage.num_data_storage_units=1"]
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["algorithm.adv_estimator=grpo", "trainer.device=cpu", *overrides])
    OmegaConf.set_struct(config, False)
    tq.init(config.transfer_queue)
    yield config
    tq.close()
    ray.shutdown()


@pytest.fixture(scope="module")
def tokenizer(places: Places) -> Any:
    return AutoTokenizer.from_pretrained(places.policy)


def flat(values: list[list[float]]) -> list[float]:
    return [x for row in values for x in row]


def test_at_least_twelve_methods_can_be_reached() -> None:
    assert len(REACHABLE) >= 12


@pytest.mark.parametrize("method", REACHABLE)
def test_a_method_in_verl_is_the_method(configuration: DictConfig, tokenizer: Any, method: str) -> None:
    rows = made_rows(tokenizer)
    batch = queued(rows, tokenizer)
    metrics: dict[str, float] = {}
    trainer = trainer_of(configuration, tokenizer, method=method, task="places")
    after = trainer._compute_advantage(batch, metrics)
    assert flat(advantages_of(after, rows)) == pytest.approx(flat(directly(method, rows, batch)), abs=2e-6)
    assert metrics["calibrant/group/weight/mean"] > 0
    padding = [key for key in batch.keys if key.startswith("pad")]
    held = tq.kv_batch_get(keys=padding, partition_id="train", select_fields=["advantages"])["advantages"]
    assert not held.values().any()
    tq.kv_clear(keys=batch.keys, partition_id="train")


def test_without_strength_verls_own_advantages_stay_bit_for_bit(configuration: DictConfig, tokenizer: Any) -> None:
    rows, found = made_rows(tokenizer), []
    for section in ({"method": "grpo"}, {"method": "rd_only", "alpha": 0.0}):
        batch = queued(rows, tokenizer)
        trainer_of(configuration, tokenizer, **section)._compute_advantage(batch, {})
        found.append(advantages_of(batch, rows))
        tq.kv_clear(keys=batch.keys, partition_id="train")
    assert found[0] == found[1]


def test_a_reward_that_is_nan_spoils_no_group(configuration: DictConfig, tokenizer: Any) -> None:
    rows = made_rows(tokenizer)
    rows[0].fields["rm_scores"][-1] = torch.nan
    batch, metrics = queued(rows, tokenizer), {}
    trainer_of(configuration, tokenizer, method="rd_only")._compute_advantage(batch, metrics)
    first, *others = [x[0] for x in advantages_of(batch, rows)][: len(ANSWERS[0])]
    assert first == 0.0
    assert any(others) and all(x == x for x in others)
    assert metrics["calibrant/batch/unscorable"] == 1
    tq.kv_clear(keys=batch.keys, partition_id="train")


def test_all_outputs_of_a_session_get_the_advantage_of_the_last(configuration: DictConfig, tokenizer: Any) -> None:
    rows = made_rows(tokenizer)
    earlier, last = queued(rows, tokenizer), queued(rows, tokenizer, part=1)
    keys = [key for key in [*earlier.keys, *last.keys] if key[0] == "u"]
    tags = [tag for batch in (earlier, last) for key, tag in zip(batch.keys, batch.tags, strict=True) if key[0] == "u"]
    both = KVBatchMeta(partition_id="train", keys=keys, tags=tags)
    trainer_of(configuration, tokenizer, method="gcpo_cd", task="places")._compute_advantage(both, {})
    assert advantages_of(both, rows) == advantages_of(both, rows, part=1)
    assert flat(advantages_of(both, rows)) == pytest.approx(flat(directly("gcpo_cd", rows, both)), abs=2e-6)
    tq.kv_clear(keys=[*earlier.keys, *last.keys], partition_id="train")


def test_signals_read_the_reward_that_is_named(configuration: DictConfig, tokenizer: Any) -> None:
    rows, spread = made_rows(tokenizer), []
    for section in ({}, {"task_reward": "raw", "reward_range": [-10.0, 10.0]}):
        batch, metrics = queued(rows, tokenizer), {}
        trainer_of(configuration, tokenizer, method="rd_only", **section)._compute_advantage(batch, metrics)
        spread.append(metrics["calibrant/group/reward_dispersion/max"])
        tq.kv_clear(keys=batch.keys, partition_id="train")
    assert spread[0] == pytest.approx(1.0)
    assert spread[1] == pytest.approx(0.1)  # raw rewards are 2 apart in a range of 20


@pytest.mark.parametrize("section", [{"method": "ha_dw"}, {"method": "rd_only", "strength": 0.3}])
def test_a_method_with_state_gets_it_in_the_next_step(
    configuration: DictConfig, tokenizer: Any, section: dict[str, Any]
) -> None:
    rows, state = made_rows(tokenizer), {}
    trainer = trainer_of(configuration, tokenizer, task="places", **section)
    for step in range(3):
        for row in rows:
            row.fields["rm_scores"][-1] = 2.0 * ((row.slot + step) % 3 == 0)
        batch = queued(rows, tokenizer)
        trainer._compute_advantage(batch, {})
        _, state = directly_with_state(section, [row._replace(reward=sum_of(row)) for row in rows], batch, state)
        assert state
        torch.testing.assert_close(trainer.method_state, state, equal_nan=True)
        tq.kv_clear(keys=batch.keys, partition_id="train")


def test_with_kl_in_the_reward_signals_read_the_reward_without(configuration: DictConfig, tokenizer: Any) -> None:
    config = OmegaConf.merge(configuration, {"algorithm": {"use_kl_in_reward": True}})
    rows, metrics, found = made_rows(tokenizer), {}, {}
    for alpha in (0.0, 0.6):
        batch = queued(rows, tokenizer)
        trainer = trainer_of(config, tokenizer, method="rd_only", alpha=alpha)
        trainer.kl_ctrl_in_reward = core_algos.get_kl_controller(config.algorithm.kl_ctrl)
        trainer._compute_advantage(batch, metrics)
        found[alpha] = [x[0] for x in advantages_of(batch, rows)]
        tq.kv_clear(keys=batch.keys, partition_id="train")
    assert any(found[0.0][10:13])  # rewards of 2, 2, 2, made different by the KL term
    assert found[0.6][10:13] == found[0.0][10:13]  # whose reward dispersion is 0
    assert metrics["calibrant/group/reward_dispersion/max"] == pytest.approx(1.0)
