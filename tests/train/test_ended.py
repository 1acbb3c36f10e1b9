"""`--resume` of a run whose training has ended adds what is missing, and succeeds where nothing is."""

import shutil
from pathlib import Path

import pytest

from calibrant.cli.main import main
from calibrant.train.runs import Run

OPTIONS = [
    "--steps", "2", "--prompts-per-step", "2", "--rollouts", "4", "--max-completion-length", "12", "--train-rows", "20",
    "--eval-prompts", "4", "--eval-samples", "2", "--method", "grpo",
]  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ended") / "run"
    assert main(["train", *OPTIONS, "--out", str(path)]) == 0
    return path


def files(path: Path) -> dict[str, int]:
    return {str(file.relative_to(path)): file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def test_nothing_is_written_where_nothing_is_missing(ended, capsys, caplog):
    before = files(ended)
    assert main(["train", "--resume", str(ended)]) == 0
    assert files(ended) == before
    assert "is complete after 2 steps; nothing is missing" in caplog.text
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["report.html", "evaluation.json", "model"])
def test_what_is_missing_is_added(ended, tmp_path, name):
    run = Run(shutil.copytree(ended, tmp_path / "run"))
    shutil.rmtree(run.model) if name == "model" else (run.path / name).unlink()
    assert main(["train", "--resume", str(run.path)]) == 0
    assert files(run.path).keys() == files(ended).keys()
    assert run.evaluations() == Run(ended).evaluations()
    assert (run.model / "model.safetensors").read_bytes() == (ended / "model" / "model.safetensors").read_bytes()


def test_a_report_alone_needs_neither_model_nor_data(ended, tmp_path, monkeypatch):
    run = Run(shutil.copytree(ended, tmp_path / "run"))
    run.report.unlink()
    monkeypatch.setattr("calibrant.train.training.prepare", None)
    assert main(["train", "--resume", str(run.path)]) == 0
    assert run.report.exists()
