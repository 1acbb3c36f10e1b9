"""A run that is killed and continued ends where the uninterrupted run ends, to the bit."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from calibrant.rollouts import read_rollouts

SMALL = [
    "--steps", "6", "--prompts-per-step", "2", "--rollouts", "4", "--save-every", "2", "--no-evaluation",
    "--method", "gcpo_cd", "--learning-rate", "1e-3",
]  # fmt: skip


ORDINARY = ""
DIES_IN_A_CHECKPOINT = """
from transformers import Trainer
save = Trainer._save_optimizer_and_scheduler
def half(self, output_dir):
    if self.state.global_step == 4:
        open(os.path.join(output_dir, "optimizer.pt"), "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, output_dir)
Trainer._save_optimizer_and_scheduler = half
"""
DIES_SAVING_THE_POLICY = """
def half(source, target, **_):
    os.makedirs(target)
    open(os.path.join(target, "model.safetensors"), "wb").write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
shutil.copytree = half
"""


def start(*arguments: str, patch: str = ORDINARY) -> subprocess.Popen:
    """`calibrant train` in a process of its own, with something in it that kills it at an exact place."""
    code = f"import os, shutil, signal, sys\nfrom calibrant.cli.main import main\n{patch}\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(*arguments: str) -> None:
    process = start(*arguments)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()[-3000:]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    finish(*SMALL, "--out", str(path))
    return path


def assert_same_run(a: Path, b: Path) -> None:
    theirs, ours = load_file(a / "model" / "model.safetensors"), load_file(b / "model" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(theirs[name].equal(ours[name]) for name in theirs)
    names = [file.name for file in sorted((a / "rollouts").glob("*.parquet"))]
    assert names == [file.name for file in sorted((b / "rollouts").glob("*.parquet"))]
    for name in names:
        pd.testing.assert_frame_equal(read_rollouts(a / "rollouts" / name), read_rollouts(b / "rollouts" / name))
    lines = [(path / "metrics.jsonl").read_text().count("\n") for path in (a, b)]
    assert lines == [6, 6]


def wait_for(path: Path, pattern: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    "moment",
    [
        "config.yaml",  # nothing trained yet
        "rollouts/step-000004.parquet",  # between checkpoints
    ],
)
def test_kill_and_resume(uninterrupted, tmp_path, moment):
    run = tmp_path / "run"
    process = start(*SMALL, "--out", str(run))
    wait_for(run, moment, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish("--resume", str(run))
    assert_same_run(uninterrupted, run)
    assert not [file for file in run.rglob(".*") if file.is_file()]


@pytest.mark.parametrize(
    ("patch", "left"),
    [(DIES_IN_A_CHECKPOINT, "checkpoints/checkpoint-4/optimizer.pt"), (DIES_SAVING_THE_POLICY, "model.partial")],
)
def test_what_is_half_written_is_never_read(uninterrupted, tmp_path, patch, left):
    run = tmp_path / "run"
    process = start(*SMALL, "--out", str(run), patch=patch)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert (run / left).exists()
    finish("--resume", str(run))
    assert_same_run(uninterrupted, run)


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = start(*SMALL, "--out", str(run))
    wait_for(run, "rollouts/step-000003.parquet", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"calibrant train --resume {run}" in said.decode()
    assert said.decode().count("a second Ctrl-C stops at once and saves nothing more") == 1
    (step,) = re.findall(r"stopped at step (\d) of 6", said.decode())
    assert (run / "checkpoints" / f"checkpoint-{step}" / "complete.json").exists()
    finish("--resume", str(run))
    assert_same_run(uninterrupted, run)


def test_a_limit_on_file_sizes_is_one_line_and_loses_nothing(uninterrupted, tmp_path):
    """Checkpoints hold files of 10 and 19 MB: the first one cannot be written."""
    run = tmp_path / "run"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12_000_000, 12_000_000))"
    process = start(*SMALL, "--out", str(run), patch=limit)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    (line,) = [line for line in said.decode().splitlines() if "error:" in line]
    assert "the disk is full, or a quota or limit on file sizes is reached" in line and b"Traceback" not in said
    finish("--resume", str(run))
    assert_same_run(uninterrupted, run)


def test_two_processes_make_one_run_and_end(tmp_path):
    """What one process alone does, evaluation and report, happens once; both end without an error."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "calibrant"]
    options = ["--steps", "2", "--prompts-per-step", "2", "--rollouts", "4", "--eval-prompts", "4"]
    ended = subprocess.run(
        [*command, "train", *options, "--eval-samples", "2", "--method", "gcpo_bot", "--out", str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("run directory:") == 1
    assert len(read_rollouts(out / "rollouts" / "step-000002.parquet")) == 8
    assert (out / "model" / "model.safetensors").exists() and (out / "report.html").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
