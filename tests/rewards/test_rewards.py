"""Rewards of calibration: by hand, as TRL calls them, and in training."""

import logging
import math
from functools import partial

import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from calibrant.cli.main import main
from calibrant.demo import policy_path
from calibrant.errors import CalibrantError
from calibrant.evaluate.confidence import calibration
from calibrant.files import read_json_lines
from calibrant.rewards import brier, self_certainty, semantic_calibration, stated_answer, stated_confidence
from calibrant.rewards.certainty import mean_divergence
from calibrant.rewards.stated import warn_of_collapse
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer


def said(answer, confidence):
    return f"I think <answer>{answer}</answer> and <confidence>{confidence}</confidence>"


def chat(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("text", "confidence"),
    [
        ("<confidence>0.75</confidence>", 0.75),
        ("<CONFIDENCE> 30 % </CONFIDENCE>", 0.3),
        ("<confidence>0.1</confidence> no, <confidence>.9</confidence>", 0.9),
        ("My confidence is 80%.", 0.8),
        ("Confidence: 1", 1.0),
        ("<confidence>1.5</confidence>", None),
        ("<confidence>80</confidence>", None),  # 80 of what?
        ("<confidence>high</confidence>", None),
        ("confident in 2 answers", None),
        ("", None),
        (chat("x <confidence>0.5</confidence>"), 0.5),
        ([], None),
        (None, None),
    ],
)
def test_confidences_are_read(text, confidence):
    assert stated_confidence(text) == confidence


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (said("Oslo", 0.5), "Oslo"),
        ("<answer>a</answer> wait <answer> b ", "b"),
        ("<answer>a <confidence>0.5</confidence>", "a"),
        ("Oslo <confidence>0.5</confidence>", "Oslo"),
        (chat("Oslo"), "Oslo"),
    ],
)
def test_answers_are_read(text, answer):
    assert stated_answer(text) == answer


def test_brier_by_hand():
    completions = [said("4", 1), said("4", 0.25), said("5", 0.25), said("5", 1), "4", said("4", 0.5)]
    references = [["4"], ["4", "four"], "4", 4, "4", None]
    assert brier(completions, references) == [1.0, 1 - 0.5625, -0.0625, -1.0, 0.0, None]
    never = partial(brier, is_correct=lambda answer, right: None)
    assert never(completions, references) == [None] * 6
    judged = brier([said("Four", 0.5)], ["4"], is_correct=lambda answer, right: (answer, right) == ("Four", ["4"]))
    assert judged == [0.75]


def test_brier_is_a_proper_score():
    """For an answer that is right with probability p, no stated confidence does better than p."""
    grid = [i / 100 for i in range(101)]
    for p in (0.1, 0.5, 0.85):
        scores = [
            p * brier([said("1", q)], ["1"])[0] + (1 - p) * brier([said("0", q)], ["1"])[0]  # in expectation
            for q in grid
        ]
        assert grid[scores.index(max(scores))] == pytest.approx(p)


def test_semantic_calibration_by_hand():
    first = [said("1,000", 0.75), said("1000", 1), said("1e3", 0), said("7", 0.25)]
    second = [said("", 0.5), said("", 0.5), "a", said("b", 0.25)]
    rewards = semantic_calibration(first + second, prompts=["p"] * 4 + [chat("p")] * 4)
    assert rewards == [1.0, 1 - 0.0625, 1 - 0.5625, 1.0, 1 - 0.0625, 1 - 0.0625, 0.0, 1.0]


def test_mean_divergence_is_the_loop():
    logits = torch.randn(5, 7, dtype=torch.float64)
    p = logits.softmax(-1).tolist()
    loop = [math.fsum(math.log((1 / 7) / x) / 7 for x in row) for row in p]
    assert mean_divergence(logits) == pytest.approx(math.fsum(loop) / 5)
    assert mean_divergence(torch.zeros(2, 9)) == pytest.approx(0.0, abs=1e-12) and math.isnan(
        mean_divergence(torch.zeros(0, 9))
    )


@pytest.fixture(scope="module")
def loaded():
    return AutoModelForCausalLM.from_pretrained(policy_path(), dtype="float32"), AutoTokenizer.from_pretrained(
        policy_path()
    )


def test_self_certainty_reads_the_logits_of_the_completion(loaded):
    policy, tokenizer = loaded
    prompt, ids = "The capital of Norway is", tokenizer(" Oslo, not Bergen")["input_ids"]
    values = self_certainty([prompt] * 3, [ids, ids[:1], []], policy=policy, tokenizer=tokenizer)
    with torch.no_grad():
        logits = policy(torch.tensor([tokenizer(prompt)["input_ids"] + ids])).logits[0, -len(ids) - 1 : -1]
    assert values[0] == pytest.approx(mean_divergence(logits), rel=1e-5) and values[2] is None
    assert values[1] == pytest.approx(mean_divergence(logits[:1]), rel=1e-5) and values[1] > 0
    with pytest.raises(CalibrantError, match="'self_certainty' needs a policy"):
        self_certainty([prompt], [ids])


def test_rewards_that_were_seen_to_collapse_say_so_once(loaded, caplog):
    warn_of_collapse.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            semantic_calibration(["a"], prompts=["p"])
            self_certainty(["p"], [[5]], policy=loaded[0], tokenizer=loaded[1])
            brier(["a"], ["a"])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("optimised alone it was seen to collapse" in text for text in said)
    assert "'semantic_calibration'" in said[0] and "'self_certainty'" in said[1]


def arguments(kind, folder, **more):
    return kind(
        str(folder), max_steps=2, num_generations=4, per_device_train_batch_size=8, max_completion_length=6,
        report_to="none", save_strategy="no", use_cpu=True, gradient_checkpointing=False, **more,
    )  # fmt: skip


def rows():
    return Dataset.from_list([{"prompt": f"{n} plus 1 is", "references": [str(n + 1)]} for n in range(8)])


def test_the_trainer_gives_self_certainty_its_policy(tmp_path):
    config = arguments(CalibratedGRPOConfig, tmp_path, method="grpo", reward_weights=[1.0, 0.1, 0.1])
    rewards = [brier, semantic_calibration, self_certainty]
    trainer = CalibratedGRPOTrainer(str(policy_path()), rewards, config, rows())
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/self_certainty/mean"] > 0 and logged["rewards/brier/mean"] == -1.0  # nothing is stated
    assert logged["rewards/semantic_calibration/mean"] == 0.0


def test_they_are_rewards_of_plain_trl_too(tmp_path, loaded):
    certain = partial(self_certainty, policy=loaded[0], tokenizer=loaded[1])
    rewards = [brier, semantic_calibration, certain]
    trainer = GRPOTrainer(str(policy_path()), rewards, arguments(GRPOConfig, tmp_path), train_dataset=rows())
    trainer.train()
    assert trainer.state.log_history[0]["rewards/self_certainty/mean"] > 0


def test_they_are_reward_functions_of_the_command_line(tmp_path, capsys):
    names = [f"calibrant.rewards.{name}" for name in ("brier", "semantic_calibration", "self_certainty")]
    small = ["--steps", "2", "--prompts-per-step", "2", "--rollouts", "4", "--max-completion-length", "6",
             "--eval-prompts", "2", "--eval-samples", "2"]  # fmt: skip
    weights = ["--reward-weights", "1", "0.1", "0.05"]
    folder = tmp_path / "run"
    assert main(["train", "--method", "gcpo_cd", "--out", str(folder), *small, "--reward-funcs", *names, *weights]) == 0
    rows = read_json_lines(folder / "metrics.jsonl")
    assert all(row["rewards/self_certainty/mean"] > 0 and row["rewards/brier/mean"] <= 0 for row in rows)
    assert yaml.safe_load((folder / "config.yaml").read_text())["settings"]["reward_weights"] == [1, 0.1, 0.05]


def test_stated_confidence_is_evaluated_beside_likelihoods():
    completions = [said("4", 0.9), said("5", 0.2), said("4", 0.8), "4"] * 3
    frame = pd.DataFrame(
        {
            "prompt_id": [f"{i // 4}" for i in range(12)],
            "completion": completions,
            "correct": [True, False, True, True] * 3,
            "logprob": [-1.0, -0.1, -1.0, -0.5] * 3,
            "num_tokens": [2] * 12,
        }
    )
    results = calibration(frame, str)
    assert results["stated_share"] == 0.75
    assert results["stated_calibration"]["correctness_auc"]["mean"] == 1.0  # stated ones are ranked, likelihoods not
    assert results["calibration"]["correctness_auc"]["mean"] == 0.0
    brier_score = (0.1**2 + 0.2**2 + 0.2**2) / 3
    assert results["stated_calibration"]["brier"]["mean"] == pytest.approx(brier_score)
    without = calibration(frame.drop(columns=["logprob"]), str)
    assert "calibration_missing" in without and without["stated_share"] == 0.75
    assert "stated_calibration" not in calibration(frame.assign(completion="4"), str)
