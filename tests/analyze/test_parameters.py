"""V(q) is of all parameters, of those that were asked for, or of the last block of a large model."""

from dataclasses import replace

import pytest
from builders_analyze import lines_of
from transformers import AutoModelForCausalLM, GPT2Config

from calibrant.analyze import parameters
from calibrant.analyze.groups import sampled_group
from calibrant.analyze.measure import measure_group
from calibrant.analyze.parameters import Measured, last_block, measured_parameters
from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.policy.generation import Sampling
from calibrant.policy.models import load_policy, load_tokenizer
from calibrant.tasks.places import TASK

SMALL = ["analyze", "--queries", "1", "--rollouts", "4", "--max-completion-length", "12"]


def test_a_small_model_is_measured_as_a_whole():
    model = load_policy("demo")
    whole = measured_parameters(model, None)
    assert whole == Measured(None, f"all {model.num_parameters():,} trainable parameters")
    named = measured_parameters(model, ("*embed_tokens*",))
    assert named.patterns == ["*embed_tokens*"]
    assert named.words == f"*embed_tokens*: {1024 * 192:,} of {model.num_parameters():,} parameters"


def test_the_last_block_of_any_architecture():
    assert last_block(load_policy("demo")) == "model.layers.4"
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=3, n_head=2))
    assert last_block(gpt2) == "transformer.h.2"
    gpt2.config.n_layer = 4
    assert last_block(gpt2) is None


def test_a_large_model_is_measured_in_its_last_block(monkeypatch, tmp_path, capsys, caplog):
    monkeypatch.setattr(parameters, "LARGE", 1000)
    assert main([*SMALL, "--out", str(tmp_path / "block")]) == 0
    output = capsys.readouterr()
    block = sum(p.numel() for p in load_policy("demo").model.layers[4].parameters())
    assert f"the last block, model.layers.4: {block:,} of " in output.out
    assert "--parameters all measures all of it" in caplog.text
    page = (tmp_path / "block" / "report.html").read_text()
    assert "variance of the gradient of the last block, model.layers.4" in page
    assert main([*SMALL, "--parameters", "all", "--out", str(tmp_path / "all")]) == 0
    assert main([*SMALL, "--parameters", "model.layers.4.*", "--out", str(tmp_path / "same")]) == 0
    block, same, whole = (lines_of(tmp_path / name)[0]["truth"] for name in ("block", "same", "all"))
    assert block == pytest.approx(same, rel=1e-4)
    assert 0 < block["score_variance"] < 0.9 * whole["score_variance"]


def test_a_block_that_cannot_be_run_alone_takes_a_whole_pass(monkeypatch, tools):
    def refused(*_, **__):
        raise CalibrantError("the last block cannot be run alone")

    block = replace(tools, measured=Measured(["model.layers.4.*"], "the last block", True))
    sampling = Sampling(samples=4, temperature=0.9, max_new_tokens=8)
    group = sampled_group(tools.model.eval(), load_tokenizer("demo"), TASK, TASK.load("train", 1, 0)[0], sampling)
    alone = measure_group(0, group, block)[0]["truth"]
    monkeypatch.setattr("calibrant.analyze.measure.block_gram", refused)
    assert measure_group(0, group, block)[0]["truth"] == pytest.approx(alone, rel=1e-4)


def test_other_parameters_are_no_continuation(monkeypatch, tmp_path, capsys):
    assert main([*SMALL, "--out", str(tmp_path / "block")]) == 0
    monkeypatch.setattr(parameters, "LARGE", 1000)
    assert main([*SMALL, "--out", str(tmp_path / "block"), "--queries", "2"]) == 2
    assert "begun with other parameters" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["nothing.*"])
def test_a_pattern_that_fits_nothing_is_refused(tmp_path, capsys, pattern):
    assert main([*SMALL, "--parameters", pattern, "--out", str(tmp_path / "out")]) == 2
    assert "no parameter is named 'nothing.*'" in capsys.readouterr().err
