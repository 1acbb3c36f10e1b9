"""Bad options, files and directories."""

import shutil

import pytest
import torch
from builders_analyze import SMALL
from refusals import refused

from calibrant.analyze.settings import AnalyzeSettings
from calibrant.analyze.store import analysis_path
from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.files import keep_lines
from calibrant.policy.models import load_policy
from calibrant.rollouts import write_rollouts


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--queries", "0"], "'queries' is 0"),
        (["--rollouts", "1"], "give at least 2"),
        (["--temperature", "nan"], "'temperature' is nan"),
        (["--seed", "-1"], "'seed' is -1"),
        (["--task", "placse"], "places"),
        (["--split", "tset"], "no split 'tset'"),
        (["--model", "/nowhere"], "model '/nowhere'"),
        (["--parameters", "model.layer.*"], "no parameter is named 'model.layer.*'"),
        (["--embedding-model", "/nowhere"], "embedding model '/nowhere'"),
        (["--entailment-model", "/nowhere"], "/nowhere"),
        (["--cluster-rule", "greedi"], "'cluster_rule' is 'greedi' (did you mean 'greedy'?)"),
        (["--from-rollouts", "/nowhere.jsonl"], "no rollout file at '/nowhere.jsonl'"),
        (["--max-prompt-length", "5"], "take"),
        (["--data-dir", "somewhere"], "leave out --data-dir"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "analyze", *arguments)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no rollout"),
        ([{"prompt_id": "a", "completion": "b", "reward": 1.0}], "lacks prompts"),
        ([{"prompt_id": "a", "completion": "b", "prompt": "c"}], "lacks the column reward"),
    ],
)
def test_a_file_that_cannot_be_analysed(capsys, tmp_path, rows, said):
    columns = {"prompt_id": "x", "completion": "x", "reward": 0.0}
    source = write_rollouts(tmp_path / "r.jsonl", rows or [columns])
    if not rows:
        source = tmp_path / "r.parquet"
        write_rollouts(source, [columns])
        import pandas as pd

        pd.read_parquet(source).iloc[:0].to_parquet(source)
    assert said in refused(capsys, "analyze", "--from-rollouts", str(source), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rollouts", "5"], "rollouts = 4, not 5"),
        (["--rollouts", "4", "--seed", "1"], "seed = 0, not 1"),
        (["--rollouts", "4", "--parameters", "lm_head*"], "parameters = None, not"),
    ],
)
def test_other_options_are_refused(capsys, whole, tmp_path, arguments, said):
    path = tmp_path / "analysis"
    shutil.copytree(whole, path)
    line = refused(capsys, "analyze", "--queries", "6", *arguments, "--out", str(path))
    assert said in line and "give another --out" in line
    assert (path / "groups.jsonl").read_bytes() == (whole / "groups.jsonl").read_bytes()


def test_directories_that_hold_something_else(capsys, tmp_path, whole):
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds other files" in refused(capsys, *SMALL, "--out", str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    assert "is a file" in refused(capsys, *SMALL, "--out", str(tmp_path / "notes.txt"))


def test_other_weights_under_the_same_name_are_refused(capsys, tmp_path, policy):
    model = tmp_path / "model"
    shutil.copytree(policy, model)
    few = ["analyze", "--queries", "1", "--rollouts", "2", "--model", str(model), "--out", str(tmp_path / "out")]
    assert main(few) == 0
    changed = load_policy(str(model))
    with torch.no_grad():
        changed.get_output_embeddings().weight[0, 0] += 1.0
    changed.save_pretrained(model)
    capsys.readouterr()
    assert "other weights under the same name" in refused(capsys, *few)


def test_a_damaged_line_is_named(capsys, whole, tmp_path):
    path = tmp_path / "analysis"
    shutil.copytree(whole, path)
    lines = (path / "groups.jsonl").read_text().splitlines(keepends=True)
    (path / "groups.jsonl").write_text("".join([lines[0], "not json\n", *lines[2:]]))
    assert "damaged at line 2" in refused(capsys, *SMALL, "--out", str(path))
    (path / "groups.jsonl").write_text("".join([lines[0], *lines[2:]]))
    assert "damaged at line 2" in refused(capsys, *SMALL, "--out", str(path))


def test_rollouts_that_were_lost_are_missed(capsys, whole, tmp_path):
    path = tmp_path / "analysis"
    shutil.copytree(whole, path)
    keep_lines(path / "rollouts.jsonl", 3)
    assert "3 of 24 lines" in refused(capsys, *SMALL, "--out", str(path))


def test_keeping_lines(tmp_path):
    path = tmp_path / "x"
    keep_lines(path)
    with pytest.raises(CalibrantError, match="missing"):
        keep_lines(path, 1)
    path.write_text("a\nb\nc")
    keep_lines(path)
    assert path.read_text() == "a\nb\n"
    keep_lines(path, 1)
    assert path.read_text() == "a\n"
    keep_lines(path, 0)
    assert path.read_text() == ""


def test_the_default_directory_is_found_again():
    settings = AnalyzeSettings(task="qasper", model="runs/mine", seed=3)
    assert analysis_path(settings).as_posix() == "runs/analyze-qasper-mine-seed3"
    assert analysis_path(settings) == analysis_path(
        AnalyzeSettings(task="qasper", model="runs/mine", seed=3, queries=7)
    )
    assert analysis_path(AnalyzeSettings(from_rollouts="a/b.parquet")).as_posix() == "runs/analyze-places-demo-b"
