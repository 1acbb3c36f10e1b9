"""Processes of jobs: what they are told, on which GPU, and why they failed."""

import signal
import sys

import pytest
import torch
from refusals import refused

from calibrant.cli.main import main
from calibrant.compare import work
from calibrant.compare.folder import Folder
from calibrant.compare.job import Job
from calibrant.errors import Stopped

JOB = Job("grpo/seed-0", None, None, {}, False)


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (2, "loading\ncalibrant: error: the disk is full\n", "the disk is full"),
        (1, "Traceback ...\nKeyError: 'x'\n", "KeyError: 'x'"),
        (1, "", "exit status 1, without a word"),
        (-9, "calibrant: error: earlier", "ended by SIGKILL"),
    ],
)
def test_a_failure_is_one_sentence(status, text, reason, tmp_path):
    (tmp_path / "log").write_text(text)
    assert work.failure(status, tmp_path / "log") == reason


def test_threads_are_fixed_and_gpus_are_dealt_out_in_turn(monkeypatch):
    assert work.environment(3)["OMP_NUM_THREADS"] == "3" and work.environment(3)["MKL_NUM_THREADS"] == "3"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [work._gpu(slot) for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert work.environment(1, work._gpu(1))["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_job_without_work_succeeds_and_ends_with_its_parent(tmp_path):
    process = work.start(JOB, tmp_path / "log", work.environment(1))
    assert process.wait(timeout=120) == 0, (tmp_path / "log").read_text()
    waiting = work.start(JOB, tmp_path / "log", work.environment(1))
    waiting.stdin.close()
    assert waiting.wait(timeout=120) == 1


def test_an_interrupt_ends_all_processes(tmp_path, monkeypatch):
    started = []

    def start(*_: object) -> work.subprocess.Popen:
        started.append(work.subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        return started[-1]

    def interrupt(seconds: float) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(work, "start", start)
    monkeypatch.setattr(work.time, "sleep", interrupt)
    with pytest.raises(Stopped, match="the same command continues"):
        work.work([JOB, Job("grpo/seed-1", None, None, {}, False)], Folder(tmp_path), side_by_side=2, threads=1)
    assert [process.poll() for process in started] == [-signal.SIGTERM] * 2


def test_a_model_that_is_not_there_is_named_before_anything_is_run(tmp_path, capsys):
    command = ["compare", "--methods", "grpo", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert "the cell 'grpo' cannot be trained" in refused(capsys, *command)
    assert not (tmp_path / "out").exists()
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "grpo/seed-2" in said and "no estimate of time: " in said
