"""Rollouts in verl's queue, and the same by hand."""

import random
from typing import Any, NamedTuple

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from calibrant.groups import Groups
from calibrant.methods import apply, read_inputs
from calibrant.tasks.places import TASK
from calibrant.text.embed import Embedder
from calibrant.text.inputs import from_clusters
from calibrant.verl.settings import calibration, read_settings

ANSWERS = [
    ["Paris", "Paris", "Rome", "Lyon", "Paris", "The city of Paris"],
    ["Baku", "Baku", "Baku", "Oslo"],
    ["Rome", "Rome", "Rome"],
    ["Quito", "", "Lima", "Quito", "Lima"],
]
GOLD = ["Paris", "Baku", "Rome", "Quito"]
SIZE = max(map(len, ANSWERS))


class Row(NamedTuple):
    """A rollout as the test knows it."""

    group: int
    slot: int
    text: str
    reward: float
    fields: dict[str, Any]


def made_rows(tokenizer: Any) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for group, (answers, gold) in enumerate(zip(ANSWERS, GOLD, strict=True)):
        for slot, text in enumerate(answers):
            tokens = tokenizer(f" {text}", add_special_tokens=False)["input_ids"] if text else []
            responses = torch.tensor([*tokens, tokenizer.eos_token_id])
            length = len(responses)
            reward = 2.0 * (text == gold)
            scores = torch.zeros(length)
            scores[-1] = reward
            prompt = torch.tensor([5, 6, 7])
            fields = {
                "uid": f"u{group}",
                "prompts": prompt,
                "responses": responses,
                "input_ids": torch.cat([prompt, responses]),
                "position_ids": torch.arange(length + 3),
                "attention_mask": torch.ones(length + 3, dtype=torch.long),
                "response_mask": torch.ones(length, dtype=torch.long),
                "loss_mask": torch.ones(length, dtype=torch.long),
                "rm_scores": scores,
                "old_log_probs": -torch.rand(length, generator=generator),
                "ref_log_prob": -torch.rand(length, generator=generator),
                "entropy": torch.rand(length, generator=generator),
                "reward_model": {"style": "rule", "ground_truth": [gold]},
                "extra_fields": {"reward_extra_info": {"score": reward, "raw": 1.0 - reward}},
                "session_id": slot,
                "multi_modal_inputs": {},
            }
            fields["rollout_log_probs"] = fields["old_log_probs"].clone()
            rows.append(Row(group, slot, text, reward, fields))
    return rows


def queued(rows: list[Row], tokenizer: Any, part: int = 0) -> KVBatchMeta:
    """The rows in the queue, in another order and padded to a multiple of 16, as verl hands them over."""
    order = random.Random(0).sample(rows, len(rows))
    keys = [f"u{row.group}_{row.slot}_{part}" for row in order]
    tags = [
        {"status": "success", "prompt_len": 3, "response_len": len(x), "seq_len": len(x) + 3}
        for x in (row.fields["responses"] for row in order)
    ]
    fields = list_of_dict_to_tensordict([dict(row.fields) for row in order])
    tq.kv_batch_put(keys=keys, partition_id="train", fields=fields, tags=tags)
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=tags)
    batch = upsample_batch_to_divisible_size(batch, 16, tokenizer.eos_token_id)
    padding = [key for key in batch.keys if key.startswith("pad")]
    assert padding
    one = {name: torch.zeros(1) for name in ("old_log_probs", "ref_log_prob", "entropy")}
    empty = list_of_dict_to_tensordict([dict(one) for _ in padding])
    tq.kv_batch_put(keys=padding, partition_id="train", fields=empty)
    return batch


def trainer_of(config: DictConfig, tokenizer: Any, mode: str = "calibrant_sync", **section: Any) -> Any:
    """A trainer without workers: what `_compute_advantage` reads, and nothing else."""
    cls = get_trainer_cls(mode)
    trainer = object.__new__(cls)
    trainer.config, trainer.tokenizer = config, tokenizer
    trainer.calibration, trainer.method_state = calibration(read_settings(section)), {}
    return trainer


def advantages_of(batch: KVBatchMeta, rows: list[Row], part: int = 0) -> list[list[float]]:
    """What the queue holds for each row."""
    keys = [f"u{row.group}_{row.slot}_{part}" for row in rows]
    fields = tq.kv_batch_get(keys=keys, partition_id="train", select_fields=["advantages"])
    return [x.tolist() for x in fields["advantages"].unbind()]


def directly(method: str, rows: list[Row], batch: KVBatchMeta) -> list[list[float]]:
    """The advantages of each token by hand."""
    return directly_with_state({"method": method}, rows, batch, {})[0]


def directly_with_state(
    section: dict[str, Any], rows: list[Row], batch: KVBatchMeta, state: dict[str, torch.Tensor]
) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """The same, and the next state: groups in the order of the batch, inputs by loops, verl's formula, `apply`."""
    method, options = section["method"], {name: x for name, x in section.items() if name != "method"}
    groups = list(dict.fromkeys(int(key[1 : key.index("_")]) for key in batch.keys if key[0] == "u"))
    width = max(len(row.fields["responses"]) for row in rows)
    at = {(groups.index(row.group), row.slot): row for row in rows}
    grid = [[at.get((n, g)) for g in range(SIZE)] for n in range(len(groups))]
    texts = [[row.text if row else "" for row in line] for line in grid]

    def numbers(value: Any) -> torch.Tensor:
        return torch.tensor([[value(row) if row else torch.nan for row in line] for line in grid])

    def tokens(field: str) -> torch.Tensor:
        values = torch.full((len(grid), SIZE, width), torch.nan)
        for (n, g), row in at.items():
            values[n, g, : len(row.fields[field])] = row.fields[field]
        return values

    rewards = numbers(lambda row: row.reward)
    clusters = TASK.clusters(texts)
    inputs = {
        "where": ~rewards.isnan(),
        "total_rewards": rewards,
        "clusters": clusters,
        "entailment": from_clusters(clusters),
        "empty": torch.tensor([[not text for text in line] for line in texts]),
        "correct": numbers(lambda row: float(row.text == GOLD[row.group])),
        "mean_logprob": numbers(lambda row: row.fields["old_log_probs"].mean().item()),
        "ref_mean_logprob": numbers(lambda row: row.fields["ref_log_prob"].mean().item()),
        "token_entropy": numbers(lambda row: row.fields["entropy"].mean().item()),
        "token_logprobs": tokens("old_log_probs"),
        "token_entropies": tokens("entropy"),
    }
    if "embeddings" in read_inputs(method):
        inputs["embeddings"] = Embedder()([text for line in texts for text in line]).unflatten(0, (len(grid), SIZE))
    verls = torch.zeros(rewards.shape)
    for n, line in enumerate(grid):
        values = torch.tensor([row.reward for row in line if row])
        if values.max() > values.min():
            verls[n, : len(values)] = (values - values.mean()) / (values.std() + 1e-6)
    named = {name: x for name, x in inputs.items() if name in read_inputs(method) or name == "where"}
    outcome = apply(method, Groups(rewards, named), state, bases={"standardised": verls}, **options)
    lists = {(n, g): outcome.advantages[n, g].tolist() for n, g in at}
    found = []
    for row in rows:
        value = lists[groups.index(row.group), row.slot]
        length = len(row.fields["responses"])
        found.append(value[:length] if isinstance(value, list) else [value] * length)
    return found, outcome.state or {}


def sum_of(row: Row) -> float:
    return row.fields["rm_scores"].sum().item()
