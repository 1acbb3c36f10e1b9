"""A pool of worker processes with a limit of time and memory per task; a worker over its limit is killed."""

import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

from calibrant.errors import CalibrantError
from calibrant.files import JsonObject

SCRIPT = Path(__file__).with_name("worker_script.py")

STARTUP = 60.0  # seconds for the imports of a worker, outside of any task's time limit
ATTEMPTS = 3  # consecutive failures to start a worker before an error is raised


class Worker:
    """A fresh interpreter that runs a script; a fork would inherit the locks of this process's threads."""

    def __init__(self, script: Path, memory: int, timeout: float):
        backstop = math.ceil(timeout) + 2
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), str(memory), str(backstop)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # a keyboard interrupt reaches the parent alone
        )
        self.task: int | None = None  # index of its current task
        self.ready = False  # whether its imports are done
        self.deadline = time.monotonic() + STARTUP  # end of its time
        self._received = b""

    def fileno(self) -> int:
        """The file descriptor of its replies."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def send(self, task: int, content: object, timeout: float) -> bool:
        """Sends a task; False if the worker has died."""
        assert self.process.stdin is not None
        self.task, self.deadline = task, time.monotonic() + timeout
        message = memoryview(json.dumps(content).encode("ascii") + b"\n")
        try:
            while message:
                message = message[os.write(self.process.stdin.fileno(), message) :]
        except BrokenPipeError:
            return False
        return True

    def receive(self) -> JsonObject | None:
        """The reply; {} while it is incomplete, None if the worker has died."""
        chunk = os.read(self.fileno(), 65536)
        self._received += chunk
        line, newline, self._received = self._received.partition(b"\n")
        if not newline:
            self._received = line
            return {} if chunk else None
        return dict(json.loads(line))

    def kill(self) -> None:
        """Kills the process and waits for its end."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class WorkerPool:
    """Up to `size` workers, started on demand and replaced when they die.

    Args:
        timeout: seconds of wall clock per task.
        memory: bytes of address space per worker.
        script: run by the workers with two arguments, the memory and the seconds after which to end itself; it writes
            a line of JSON when it is ready, and one for each line that it reads.
    """

    def __init__(self, size: int, timeout: float, memory: int, script: Path = SCRIPT):
        self.size, self.timeout, self.memory, self.script = size, timeout, memory, script
        self.workers: list[Worker] = []
        self.failures = 0

    def run(self, tasks: Sequence[object]) -> list[JsonObject]:
        """Replies to all tasks in order; {"equal": None, "error": why} where a worker took too long or died."""
        replies: list[JsonObject] = [{} for _ in tasks]
        waiting = deque(range(len(tasks)))
        try:
            while waiting or any(worker.task is not None for worker in self.workers):
                self._assign(waiting, tasks)
                for worker in self._awaited():
                    self._collect(worker, replies)
        except BaseException:
            self._drop([worker for worker in self.workers if worker.task is not None])
            raise
        return replies

    def close(self) -> None:
        """Kills all workers."""
        self._drop(list(self.workers))

    def _assign(self, waiting: deque[int], tasks: Sequence[object]) -> None:
        """Sends waiting tasks to idle workers, and starts workers for the remaining ones."""
        for worker in [worker for worker in self.workers if worker.ready and worker.task is None]:
            if waiting and not worker.send(waiting[0], tasks[waiting[0]], self.timeout):
                self._drop([worker])
            elif waiting:
                waiting.popleft()
        starting = sum(not worker.ready for worker in self.workers)
        for _ in range(min(self.size - len(self.workers), len(waiting) - starting)):
            self.workers.append(Worker(self.script, self.memory, self.timeout))

    def _awaited(self) -> list[Worker]:
        """Waits until the first deadline; the workers that have replied, died or passed their deadline."""
        busy = [worker for worker in self.workers if not worker.ready or worker.task is not None]
        first = min(worker.deadline for worker in busy)
        readable = wait([worker.fileno() for worker in busy], max(0.0, first - time.monotonic()))
        now = time.monotonic()
        return [worker for worker in busy if worker.fileno() in readable or worker.deadline <= now]

    def _collect(self, worker: Worker, replies: list[JsonObject]) -> None:
        """Records the reply of a worker, its death or timeout, or its start."""
        reply = worker.receive() if wait([worker.fileno()], 0) else {}
        if reply == {} and time.monotonic() < worker.deadline:
            return
        why = "it died" if reply is None else (reply or {"error": f"more than {self.timeout:g} s"}).get("error", "")
        if not worker.ready:
            self._started(worker, why)
            return
        task, worker.task = worker.task, None
        assert task is not None
        replies[task] = reply or {"equal": None, "error": why}
        if not reply or why.startswith("MemoryError"):
            self._drop([worker])

    def _started(self, worker: Worker, why: str) -> None:
        """Records that a worker is ready or failed to start; raises after `ATTEMPTS` failures."""
        worker.ready = not why
        self.failures = 0 if worker.ready else self.failures + 1
        if not worker.ready:
            self._drop([worker])
        if self.failures == ATTEMPTS:
            self.failures = 0
            raise CalibrantError(
                f"the verifier's workers fail to start ({why}); install math-verify, or give each more memory than "
                f"{self.memory / 2**30:g} GiB"
            )

    def _drop(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            self.workers.remove(worker)
            worker.kill()
