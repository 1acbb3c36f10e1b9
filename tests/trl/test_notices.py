"""Notices about clusters that are not those of the paper."""

import logging

import pytest
import torch
from datasets import Dataset

from calibrant.demo import policy_path
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer
from calibrant.trl.notices import ClusterNotices

EVERYTHING = torch.ones(16, 8, dtype=torch.bool)
SINGLES = torch.arange(8).expand(16, 8)


def texts(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "calibrant.trl.notices"]


@pytest.mark.parametrize("method", ["gcpo_bot", "grpo_kle", "gcpo_cd", "seed_grpo", "empo"])
def test_equal_keys_are_announced_once_where_the_paper_has_an_entailment_model(caplog, method):
    with caplog.at_level(logging.WARNING):
        ClusterNotices(method, None)
        ClusterNotices(method, "roberta-large-mnli")
    said = texts(caplog)
    assert len(said) == (method in ("gcpo_bot", "grpo_kle"))
    assert all("equal keys" in text and "--entailment-model roberta-large-mnli" in text for text in said)


def test_single_answers_are_announced_once_with_their_share(caplog):
    notices = ClusterNotices("seed_grpo", None)
    with caplog.at_level(logging.WARNING):
        notices.see({"clusters": SINGLES // 2}, EVERYTHING, 1)  # pairs: 64 clusters, none of one answer
        notices.see({"clusters": SINGLES}, EVERYTHING, 2)  # two thirds of all
        assert not texts(caplog)
        for step in range(3, 12):
            notices.see({"clusters": SINGLES}, EVERYTHING, step)
    # after k further batches (128 k + 128) of (128 k + 192) clusters are single: above 0.9 from k = 4 on
    (said,) = texts(caplog)
    assert "step 6: 91% of the 704 clusters so far are single answers" in said


def test_few_clusters_answers_that_do_not_count_and_other_methods_are_no_reason(caplog):
    with caplog.at_level(logging.WARNING):
        ClusterNotices("empo", None).see({"clusters": SINGLES[:7]}, EVERYTHING[:7], 1)  # 56 clusters
        ClusterNotices("empo", "roberta-large-mnli").see({"clusters": SINGLES}, EVERYTHING, 1)
        ClusterNotices("grpo", None).see({}, EVERYTHING, 1)
        half = torch.tensor([True, False] * 4).expand(16, 8)
        ClusterNotices("empo", None).see({"clusters": SINGLES // 4}, half, 1)
    assert not texts(caplog)


def test_the_trainer_says_both(caplog, tmp_path):
    config = CalibratedGRPOConfig(
        str(tmp_path), method="gcpo_bot", num_generations=8, per_device_train_batch_size=16, max_steps=5, use_cpu=True,
        max_completion_length=6, report_to="none", save_strategy="no", temperature=2.0, rollouts_dir="",
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": "The capital of Norway is"}] * 4)
    with caplog.at_level(logging.WARNING):
        trainer = CalibratedGRPOTrainer(str(policy_path()), lambda completions, **_: [len(x) for x in completions],
                                        config, data)  # fmt: skip
        assert len(texts(caplog)) == 1
        trainer.train()
    first, second = texts(caplog)
    assert "equal keys" in first and "are single answers" in second


def test_agreement_needs_no_moving_average_of_the_policy(tmp_path):
    shared = {"method": "grpo_care", "report_to": "none", "use_cpu": True, "rollouts_dir": ""}
    data = Dataset.from_list([{"prompt": "a"}])

    def slow(**more):
        config = CalibratedGRPOConfig(str(tmp_path), **shared, **more)
        reward = [lambda completions, **_: [0.0] * len(completions)]
        return CalibratedGRPOTrainer(str(policy_path()), reward, config, data)._policy_inputs.slow

    assert slow() is not None and slow(method_options={"form": "agreement"}) is None
