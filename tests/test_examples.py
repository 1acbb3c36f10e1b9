"""The examples run as they stand."""

import runpy
import sys
from pathlib import Path

import pytest

from calibrant.cli.main import main
from calibrant.files import read_json_lines
from calibrant.rollouts import write_rollouts

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_trl_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "trl_one_line.py"), run_name="__main__")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{'reward': ")]
    assert len(printed) >= 5
    assert all("group/weight/mean" in line for line in printed[-5:])
    assert len(list(tmp_path.glob("runs/trl_one_line/_rollouts/step-*.parquet"))) == 5


@pytest.mark.parametrize(
    ("name", "arguments", "printed", "written"),
    [
        ("own_task", [], "'rewards/f1/mean': ", "runs/own_task"),
        ("lora", [], "parameters; the adapter is in", "runs/lora/adapter/adapter_model.safetensors"),
        (
            "stated_confidence",
            ["--steps", "1", "--epochs", "2", "--prompts", "32"],
            "brier   ",
            "runs/stated_confidence/brier",
        ),
        ("score_rollouts", [], "capital-of-chile      weight 1.000", "runs/score_rollouts/scored.parquet"),
        ("compare_methods", ["--steps", "1", "--prompts", "8"], "paired by prompt", "runs/compare_methods/grpo/model"),
        ("gradient_variance", [], "V(q) = ", "gradient_variance.png"),
    ],
)
def test_examples_run(name, arguments, printed, written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setattr("sys.argv", [f"{name}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert printed in capsys.readouterr().out and (tmp_path / written).exists()


@pytest.mark.slow
def test_stated_confidences_come_nearer_to_the_truth(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stated_confidence.py"])
    runpy.run_path(str(EXAMPLES / "stated_confidence.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if "Brier score" in line]
    before, *after = (float(line.split()[-1]) for line in lines)
    assert len(after) == 2 and all(score < before - 0.03 for score in after)


def test_the_theory_on_real_groups(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["theory.py", "--questions", "2", "--answers", "32"])
    runpy.run_path(str(EXAMPLES / "theory.py"), run_name="__main__")
    head, *lines = capsys.readouterr().out.splitlines()
    rows = [[float(x) for x in line.split()[3:]] for line in lines if "answers " in line or "rewards " in line]
    assert len(rows) == 4 and head in (EXAMPLES.parent / "docs" / "theory.md").read_text()
    for within, between, gini, entropy, slack, dispersion, transport, papers in rows:
        assert abs(within + between - 1) <= 0.01 + 1e-9 and between <= min(gini, dispersion) + 0.01
        assert gini <= entropy + 0.01 and dispersion <= transport + 0.01
        assert abs(gini - between - slack) <= 0.02 and abs(transport - 2 * papers) <= 0.02
    none, best, exact, proxy = (line.split()[-2:] for line in lines if line.startswith(("none", "one", "gradient_snr")))
    assert none[0] == "1.000" and float(best[1]) <= float(none[1]) and 0 < float(exact[0]) < 1 > float(proxy[0])


def test_the_method_of_the_documentation_trains_on_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr("sys.path", list(sys.path))
    arguments = ["--method", "my_method.frontier", "--method-options", "width=0.3", "--out", str(tmp_path / "run")]
    small = ["--steps", "2", "--prompts-per-step", "2", "--rollouts", "4", "--no-evaluation"]
    assert main(["train", *arguments, *small]) == 0
    rows = list(read_json_lines(tmp_path / "run" / "metrics.jsonl"))
    assert all("group/distance/mean" in row and row["group/weight/mean"] < 1 for row in rows)


def test_the_documentation_shows_the_method_as_it_is():
    source = (EXAMPLES / "my_method.py").read_text().partition('"""\n\n')[2]
    assert len(source.strip().splitlines()) <= 20
    assert source in (EXAMPLES.parent / "docs" / "own_method.md").read_text()


def test_a_method_of_ones_own_scores_rollouts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    monkeypatch.setattr("sys.path", [folder for folder in sys.path if folder not in ("", str(EXAMPLES))])
    rows = [{"prompt_id": "a", "completion": str(i), "reward": float(i)} for i in range(3)]
    file = write_rollouts(tmp_path / "rollouts.jsonl", rows)
    assert main(["score", str(file), "--method", "my_method.frontier"]) == 0
    assert "frontier" in capsys.readouterr().out
