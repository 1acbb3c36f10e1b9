"""Checkpoints with damaged files: an older whole one is taken, or the run is refused in one sentence."""

import os
import random
import shutil
from pathlib import Path

import pytest
from refusals import refused
from safetensors.torch import load_file

from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.files import write_json
from calibrant.train.checkpoints import last_checkpoint, mark_complete, unreadable
from calibrant.train.runs import Run

METHOD = "grpo_care"  # its EMA reference is a file of the checkpoint too
OPTIONS = [
    "--steps", "4", "--save-every", "2", "--prompts-per-step", "2", "--rollouts", "4", "--no-evaluation",
    "--max-completion-length", "12", "--train-rows", "20", "--method", METHOD, "--learning-rate", "1e-3",
]  # fmt: skip
FILES = (
    "complete.json", "config.json", "generation_config.json", "model.safetensors", "optimizer.pt", "rng_state.pth",
    "scheduler.pt", "slow_reference.safetensors", "tokenizer.json", "tokenizer_config.json", "trainer_state.json",
    "training_args.bin",
)  # fmt: skip
DAMAGES = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "random": lambda content: random.Random(0).randbytes(len(content)),
    "one bit": lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that has ended, with its checkpoints after steps 2 and 4."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *OPTIONS, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A copy of it whose policy has not been published."""
    copied = shutil.copytree(
        trained, tmp_path / "run", copy_function=os.link, ignore=shutil.ignore_patterns("model", "report.html")
    )
    (copied / "metrics.jsonl").unlink()
    shutil.copy(trained / "metrics.jsonl", copied)
    return Run(copied)


def damage(file: Path, kind: str) -> None:
    """Damages one file, and not the one that it is linked to."""
    content = DAMAGES[kind](file.read_bytes())
    file.unlink()
    if content is not None:
        file.write_bytes(content)


def without_checksums(run: Run) -> None:
    """Marks checkpoints as earlier versions did."""
    for step in (2, 4):
        write_json(run.checkpoints / f"checkpoint-{step}" / "complete.json", {"step": step, "method": METHOD})


def test_every_file_of_a_checkpoint_is_damaged_below(trained):
    assert sorted(path.name for path in (trained / "checkpoints" / "checkpoint-4").iterdir()) == sorted(FILES)


def test_a_whole_checkpoint_is_taken_without_a_word(run, caplog):
    assert last_checkpoint(run, METHOD).name == "checkpoint-4"
    assert not caplog.records


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_one_named(run, caplog, name, kind):
    file = run.checkpoints / "checkpoint-4" / name
    damage(file, kind)
    assert last_checkpoint(run, METHOD).name == "checkpoint-2"
    (record,) = caplog.records
    said = record.getMessage()
    named = file.parent if name == "complete.json" else file
    assert f"'{named}" in said and "\n" not in said
    assert said.endswith(f"going back to '{run.checkpoints / 'checkpoint-2'}'")


@pytest.mark.parametrize("kind", DAMAGES)
def test_without_a_whole_checkpoint_nothing_is_trained(run, capsys, kind):
    damage(run.checkpoints / "checkpoint-4" / "optimizer.pt", kind)
    damage(run.checkpoints / "checkpoint-2" / "scheduler.pt", kind)
    line = refused(capsys, "train", "--resume", str(run.path))
    assert "every checkpoint of the run is damaged" in line and "optimizer.pt'" in line and "scheduler.pt'" in line
    assert not run.model.exists() and (run.checkpoints / "checkpoint-4").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("optimizer.pt", "missing"),
        ("slow_reference.safetensors", "random"),
        ("complete.json", "empty"),
    ],
)
def test_going_back_ends_where_the_uninterrupted_run_ends(trained, run, name, kind):
    damage(run.checkpoints / "checkpoint-4" / name, kind)
    assert main(["train", "--resume", str(run.path)]) == 0
    theirs, ours = load_file(trained / "model" / "model.safetensors"), load_file(run.model / "model.safetensors")
    assert theirs.keys() == ours.keys() and all(theirs[key].equal(ours[key]) for key in theirs)
    assert run.metrics.read_text().count("\n") == 4
    assert last_checkpoint(run, METHOD).name == "checkpoint-4"


def test_a_damaged_last_checkpoint_is_not_published(trained, run, capsys, monkeypatch):
    """Nothing trains here: the checkpoint breaks after it was found whole."""
    taken = iter([run.checkpoints / "checkpoint-4", run.checkpoints / "checkpoint-2"])
    monkeypatch.setattr("calibrant.train.training.last_checkpoint", lambda *_: next(taken))
    assert "the last checkpoint is damaged" in refused(capsys, "train", "--resume", str(run.path))
    assert not run.model.exists()


def test_a_checkpoint_of_an_earlier_version_is_resumed_and_said_to_be_unproven(run, caplog):
    without_checksums(run)
    assert last_checkpoint(run, METHOD).name == "checkpoint-4"
    assert "no checksums" in caplog.text


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "random"])
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
)
def test_what_can_be_checked_of_an_earlier_version_is(run, name, kind):
    without_checksums(run)
    damage(run.checkpoints / "checkpoint-4" / name, kind)
    assert last_checkpoint(run, METHOD).name == "checkpoint-2"


def test_another_number_of_processes_is_said(run, caplog):
    checkpoint = run.checkpoints / "checkpoint-4"
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    mark_complete(checkpoint, step=4, method=METHOD)
    assert main(["train", "--resume", str(run.path)]) == 0
    assert "was written by 2 processes, not 1" in caplog.text


def test_a_sharded_checkpoint_of_an_earlier_version_has_its_state_in_folders(run):
    checkpoint = run.checkpoints / "checkpoint-4"
    (checkpoint / "optimizer.pt").unlink()
    assert "optimizer.pt' is missing" in unreadable(checkpoint)
    (checkpoint / "global_step4").mkdir()
    assert unreadable(checkpoint) is None


def test_a_missing_slow_reference_of_an_earlier_version_is_one_sentence(run, capsys):
    without_checksums(run)
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    (run.checkpoints / "checkpoint-2" / "slow_reference.safetensors").unlink()
    assert "has no EMA reference" in refused(capsys, "train", "--resume", str(run.path))


def test_the_method_of_the_newest_whole_checkpoint_counts(run):
    with pytest.raises(CalibrantError, match="was trained with 'grpo_care', the run says 'grpo'"):
        last_checkpoint(run, "grpo")
