"""A comparison whose processes are killed ends, started again, where an uninterrupted one ends, but for times."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders_compare import SMALL, without_times

pytestmark = pytest.mark.slow
COMMAND = ["--methods", "grpo", "gcpo_cd", "--seeds", "0", "1", *SMALL]


def start(folder: Path, jobs: int = 2) -> subprocess.Popen:
    command = [sys.executable, "-m", "calibrant", "compare", *COMMAND, "--jobs", str(jobs), "--out", str(folder)]
    with open(folder.parent / "said", "ab") as said:
        return subprocess.Popen(command, stdout=said, stderr=said)


def finish(folder: Path, jobs: int = 2) -> None:
    assert start(folder, jobs).wait(timeout=900) == 0, (folder.parent / "said").read_text()[-3000:]


def children(parent: int) -> list[int]:
    """Processes of jobs that a process has started."""
    pids = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"calibrant.cli.child" in command:
            pids.append(int(status.parent.name))
    return pids


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    finish(folder, jobs=1)
    return folder


def test_the_number_of_jobs_changes_no_number_and_a_killed_comparison_ends_the_same(uninterrupted, tmp_path):
    folder, moments = tmp_path / "out", random.Random(0)
    for _ in range(3):
        process = start(folder)
        until(lambda process=process: children(process.pid) or process.poll() is not None)
        time.sleep(moments.uniform(0, 25))
        jobs = children(process.pid)
        process.kill()
        process.wait()
        until(lambda jobs=jobs: not any(map(alive, jobs)), 60)
    finish(folder)
    assert without_times(folder) == without_times(uninterrupted)


def test_a_killed_run_is_named_and_is_resumed_by_the_next_start(uninterrupted, tmp_path):
    folder = tmp_path / "out"
    process = start(folder)
    until(lambda: list(folder.glob("runs/*/*/checkpoints/checkpoint-1/complete.json")))
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=900) == 0
    failed = [cell["left_out"] for cell in without_times(folder)["cells"] if cell["left_out"]]
    assert failed and all(reason == "ended by SIGKILL" for reasons in failed for reason in reasons.values())
    finish(folder)
    assert without_times(folder) == without_times(uninterrupted)


def test_an_interrupt_stops_every_process_and_the_same_command_continues(uninterrupted, tmp_path):
    folder = tmp_path / "out"
    process = start(folder)
    until(lambda: list(folder.glob("runs/*/*/metrics.jsonl")))
    jobs = children(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130
    assert not any(map(alive, jobs))
    assert "the same command continues the comparison" in (tmp_path / "said").read_text()
    finish(folder)
    assert without_times(folder) == without_times(uninterrupted)
