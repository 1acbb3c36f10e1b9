"""The jobs of a comparison as tasks of a Ray cluster, for `--ray`; Ray is imported only then.

A task runs the same process as on one machine. When its node dies, the process dies with it, and Ray starts the task on
another node, where the run continues from its last checkpoint on the shared storage.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibrant.compare.folder import Folder
from calibrant.compare.job import Job
from calibrant.compare.settings import CompareSettings
from calibrant.compare.work import (
    EVERY,
    STOPPED,
    STOPPING,
    Progress,
    environment,
    failure,
    interrupted_by_sigterm,
    start,
)
from calibrant.errors import Stopped, reason
from calibrant.ray_cluster import connected

RETRIES = 10  # after deaths of nodes, per run
PATIENCE = 120.0  # seconds for the lock of a process on a dead node to go
GIGABYTE = 1_000_000_000


def work_on_ray(jobs: Sequence[Job], folder: Folder, settings: CompareSettings) -> dict[str, str]:
    """As `work.work`, on the Ray cluster of the settings."""
    with connected(settings.ray or "auto") as ray:
        return _work(ray, jobs, folder, settings)


def _work(ray: Any, jobs: Sequence[Job], folder: Folder, settings: CompareSettings) -> dict[str, str]:
    memory = {} if settings.ray_memory is None else {"memory": settings.ray_memory * GIGABYTE}
    room: dict[str, Any] = {"num_cpus": settings.threads, "num_gpus": settings.ray_gpus, **memory}
    task = ray.remote(max_retries=RETRIES, **room)(run_job)
    here, failed = os.getcwd(), dict[str, str]()
    with interrupted_by_sigterm(), Progress(jobs, folder) as progress:
        tasks = {
            task.remote(asdict(job), str(folder.log(job.name).absolute()), settings.threads, here): job for job in jobs
        }
        try:
            while tasks:
                ended, _ = ray.wait(list(tasks), timeout=EVERY)
                progress.show(list(tasks.values()))
                for one in ended:
                    job = tasks.pop(one)
                    if (said := _result(ray, one)) is not None:
                        failed[job.name] = said
                    progress.ended(job, said)
        except KeyboardInterrupt:
            _stop(ray, list(tasks))
            raise Stopped(STOPPED) from None
    return failed


def _result(ray: Any, task: Any) -> str | None:
    """Why a task failed, in one sentence; None where it did not."""
    try:
        said: str | None = ray.get(task)
    except ray.exceptions.RayError as error:
        return f"Ray gave up: {reason(error)}"
    return said


def _stop(ray: Any, tasks: list[Any]) -> None:
    print(STOPPING, file=sys.stderr)
    for force in (False, True):
        for task in tasks:
            ray.cancel(task, force=force)
        try:
            ray.wait(tasks, num_returns=len(tasks))
        except KeyboardInterrupt:
            continue
        return


def run_job(job: dict[str, Any], log: str, threads: int, folder: str) -> str | None:
    """Does a job on a node, in a folder that all nodes share; why it failed, or None."""
    end = time.monotonic() + PATIENCE
    while True:
        process = start(Job(**job), Path(log), environment(threads), folder)
        try:
            status = process.wait()
        except KeyboardInterrupt:  # the task is cancelled
            process.terminate()
            process.wait()
            raise
        said = failure(status, Path(log)) if status else None
        if said is None or "is in use by" not in said or time.monotonic() > end:
            return said
        time.sleep(5)
