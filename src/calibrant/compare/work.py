"""The jobs of a comparison, each in a process of its own with a fixed number of threads, some of them side by side."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
from tqdm.auto import tqdm

from calibrant.compare.folder import Folder
from calibrant.compare.job import Job
from calibrant.compare.plan import steps_done
from calibrant.errors import Stopped, shortened
from calibrant.train.runs import Run

CHILD = (sys.executable, "-m", "calibrant.cli.child")
"""The command that reads a job from its standard input, and ends when that is closed: when this process dies."""
ERROR = "calibrant: error: "
STOPPING = "stopping; runs write a checkpoint after their step; a second Ctrl-C stops at once"
STOPPED = "stopped; the same command continues the comparison"
EVERY = 0.5  # seconds between looks at the processes


@dataclass
class Running:
    """A process, and the job that it does."""

    job: Job
    process: "subprocess.Popen[bytes]"
    slot: int  # which of the jobs side by side


def work(jobs: Sequence[Job], folder: Folder, *, side_by_side: int, threads: int) -> dict[str, str]:
    """Does all jobs; name -> reason of those that failed. Raises Stopped after Ctrl-C, once their processes ended."""
    waiting, running, failed = list(jobs), list[Running](), dict[str, str]()
    with interrupted_by_sigterm(), Progress(jobs, folder) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < side_by_side:
                    slot = min(set(range(side_by_side)) - {one.slot for one in running})
                    job = waiting.pop(0)
                    process = start(job, folder.log(job.name), environment(threads, _gpu(slot)))
                    running.append(Running(job, process, slot))
                time.sleep(EVERY)
                progress.show([one.job for one in running])
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    if one.process.returncode:
                        failed[one.job.name] = failure(one.process.returncode, folder.log(one.job.name))
                    progress.ended(one.job, failed.get(one.job.name))
        except KeyboardInterrupt:
            _stop(running)
            raise Stopped(STOPPED) from None
    return failed


def environment(threads: int, device: str | None = None) -> dict[str, str]:
    """The environment of a job's process; `device` is the only GPU that it sees."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    chosen = dict.fromkeys(names, str(threads)) | ({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})
    return {**os.environ, "TQDM_DISABLE": "1", **chosen}


def failure(status: int, log: Path) -> str:
    """Why a process failed, in one sentence: the error that it printed, or the last line."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if ERROR in line] or lines or [f"exit status {status}, without a word"]
    return said[-1].rpartition(ERROR)[2]


def start(job: Job, log: Path, env: dict[str, str], folder: str | None = None) -> "subprocess.Popen[bytes]":
    """The process that does a job, in the current folder or another."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        process = subprocess.Popen(
            CHILD,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=folder,
            start_new_session=True,  # Ctrl-C reaches it through this process alone
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
    process.stdin.flush()
    return process


def _gpu(slot: int) -> str | None:
    """The GPU of a slot, in turn; None where there is at most one."""
    count = torch.cuda.device_count()
    if count < 2:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (visible.split(",") if visible else list(map(str, range(count))))[slot % count]


def _stop(running: Sequence[Running]) -> None:
    """Ends the processes: training writes a checkpoint after its step, or at a second Ctrl-C ends at once."""
    print(STOPPING, file=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for one in running:
            if one.process.poll() is None:
                one.process.send_signal(number)
        try:
            for one in running:
                one.process.wait()
        except KeyboardInterrupt:
            continue
        return


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Context manager: SIGTERM, as a scheduler sends it, is a Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Progress:
    """Context manager: a bar over the optimisation steps of all runs, and a line for each job that ended."""

    def __init__(self, jobs: Sequence[Job], folder: Folder):
        self.left, self.folder, self.since = len(jobs), folder, dict[str, float]()
        self.done = {job.name: _steps(job) for job in jobs}
        total = sum(job.training["steps"] for job in jobs if job.training) - sum(self.done.values())
        self.bar = tqdm(total=total, unit="step", desc=f"{self.left} to do", dynamic_ncols=True, disable=None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, running: Sequence[Job]) -> None:
        """Counts the steps of running jobs."""
        self.bar.set_postfix_str(shortened([job.name for job in running]), refresh=False)
        for job in running:
            self.since.setdefault(job.name, time.monotonic())
            now = _steps(job)
            self.bar.update(max(0, now - self.done[job.name]))
            self.done[job.name] = max(now, self.done[job.name])

    def ended(self, job: Job, reason: str | None) -> None:
        """Says how a job ended."""
        self.left -= 1
        self.bar.set_description(f"{self.left} to do")
        seconds = time.monotonic() - self.since[job.name]
        how = f"failed: {reason} (see {self.folder.log(job.name)})" if reason else f"done in {seconds:.0f} s"
        self.bar.write(f"{job.name}: {how}", file=sys.stderr)


def _steps(job: Job) -> int:
    return steps_done(Run(Path(job.run))) if job.run and job.training else 0
