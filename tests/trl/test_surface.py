"""What people see of the trainer beside the parameters: names that they log under, the model card, defaults."""

import functools
import logging
import re
from pathlib import Path

import pandas as pd
import pytest
from test_trainer import arguments, f1_reward, train
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from calibrant.methods import METHODS
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer
from calibrant.trl.model_card import with_method


def logging_reward(completions, references, log_extra, log_metric, **_):
    log_extra("weight", [float(len(text)) for text in completions])
    log_metric("group/weight/mean", 77.0)
    return f1_reward(completions, references)


def weight(completions, references, **_):
    return f1_reward(completions, references)


def completions_of(folder):
    return pd.read_parquet(folder / "completions" / "completions_00001.parquet")


def test_what_a_reward_function_logs_is_kept(policy, questions, tmp_path):
    args = arguments(tmp_path, method="rd_only", max_steps=1, log_completions=True)
    trainer = train(policy, questions, args, logging_reward)
    table, logged = completions_of(tmp_path), trainer.state.log_history[0]
    assert table["weight"].tolist() == [len(text) for text in table["completion"]]
    assert table["calibrant_weight"].ge(1).all() and table["calibrant_weight"].le(2).all()
    assert logged["group/weight/mean"] == 77.0
    assert logged["calibrant_group/weight/mean"] == pytest.approx(table["calibrant_weight"].mean())


@pytest.mark.parametrize(("reward", "column"), [(f1_reward, "weight"), (weight, "calibrant_weight")])
def test_a_reward_function_keeps_its_column(policy, questions, tmp_path, reward, column):
    args = arguments(tmp_path, method="rd_only", max_steps=1, log_completions=True)
    train(policy, questions, args, reward)
    table = completions_of(tmp_path)
    assert table[column].ge(1).all()
    if reward is weight:
        assert (table["weight"] == 0).any()


CARD = "# Model Card for x\n\nThis model was trained with GRPO.\n\n### Framework versions\n\n- TRL: 1.16.0\n"


@pytest.mark.parametrize("method", list(METHODS))
def test_the_card_names_method_hyperparameters_and_papers(method):
    text = with_method(CARD, METHODS[method], {"alpha": 0.25})
    before, after = text.split("### Framework versions")
    assert f"method `{method}` of calibrant" in before and "| `alpha` | `0.25` |" in before
    assert "Please cite calibrant" in before and "- calibrant: " in after and "- TRL: 1.16.0" in after
    assert ("Why Semantic Entropy Fails" in before) == ("GCPO" in str(METHODS[method].__doc__).split("Paper:")[1][:90])


def test_the_card_of_a_method_of_the_users_is_escaped():
    def hostile(rewards, where, *, name="`|\n<script>", other=1):
        """<script>alert(1)</script> [x](javascript:y) | *b* {{ jinja }}

        Paper: none <img src=x> arXiv:2504.05812
        """

    text = with_method(CARD, hostile, {})
    assert "<script>alert" not in text and "<img" not in text and "](javascript" not in text and "{{" not in text
    assert "[arXiv:2504.05812](https://huggingface.co/papers/2504.05812)" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| `name`")]
    assert row.count("`") == 4 and len(re.findall(r"(?<!\\)\|", row)) == 3
    assert with_method("no such heading", hostile, {}).startswith("no such heading\n### Calibrated updates")


def test_the_trainer_writes_the_card(policy, questions, tmp_path):
    trainer = CalibratedGRPOTrainer(policy, f1_reward, arguments(tmp_path, method="gcpo_cd", alpha=0.3), questions)
    trainer.create_model_card(model_name="mine")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "method `gcpo_cd` of calibrant" in text and "| `alpha` | `0.3` |" in text
    header = text.split("---")[1]
    assert all(f"- {tag}\n" in header for tag in ("calibrant", "grpo", "trl"))


def test_without_args_the_output_folder_is_named_after_the_model(policy, questions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    on_cpu = functools.partial(CalibratedGRPOConfig, use_cpu=True)  # the defaults of a configuration need a GPU
    monkeypatch.setattr("calibrant.trl.trainer.CalibratedGRPOConfig", on_cpu)
    loaded = AutoModelForCausalLM.from_pretrained(policy)
    for model in (policy, policy + "/", loaded):
        trainer = CalibratedGRPOTrainer(model, f1_reward, train_dataset=questions)
        assert trainer.args.output_dir == f"{Path(policy).name}-CalibratedGRPO"


def test_a_plain_configuration_says_which_method_is_used(policy, questions, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        CalibratedGRPOTrainer(policy, f1_reward, arguments(tmp_path, GRPOConfig), questions)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "calibrant.trl.config"]
    assert "GRPOConfig names no method" in said and "'gcpo_bot'" in said
    caplog.clear()
    CalibratedGRPOTrainer(policy, f1_reward, arguments(tmp_path, method="grpo"), questions)
    assert not [record for record in caplog.records if record.name.startswith("calibrant")]
