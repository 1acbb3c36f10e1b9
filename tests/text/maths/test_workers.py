"""Worker processes."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders_verify import HANGS, alive

from calibrant.errors import CalibrantError
from calibrant.text.maths import workers
from calibrant.text.maths.workers import WorkerPool


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


FAKE = """
import json, os, sys, time
if os.path.exists(sys.argv[0] + ".broken"):
    os._exit(3)
print(json.dumps({"equal": True}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if task == "die":
        os._exit(1)
    if task == "sleep":
        time.sleep(60)
    if task == "half":
        sys.stdout.write('{"equal": '); sys.stdout.flush(); time.sleep(0.3); print("true}", flush=True); continue
    error = {"error": "MemoryError: "} if task == "memory" else {}
    print(json.dumps({"equal": None if error else task, "pid": os.getpid()} | error), flush=True)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    return path


@pytest.fixture
def pool(script):
    pool = WorkerPool(2, 1.0, 2**31, script)
    yield pool
    pool.close()


def test_a_pool_answers_in_order_whatever_becomes_of_its_workers(pool):
    tasks = [1, "die", 2, "sleep", "half", 3, "memory", "die", *range(10, 60)]
    replies = pool.run(tasks)
    assert [reply["equal"] for reply in replies] == [1, None, 2, None, True, 3, None, None, *range(10, 60)]
    assert [replies[i]["error"] for i in (1, 3, 6)] == ["it died", "more than 1 s", "MemoryError: "]
    assert len(pool.workers) <= 2


def test_workers_survive_and_close_leaves_none(pool):
    first = pool.run([1])[0]["pid"]
    later = {reply["pid"] for reply in pool.run([*range(200)])}
    assert first in later
    assert {worker.process.pid for worker in pool.workers} >= later
    pool.close()
    assert not any(map(alive, later))
    assert pool.run([1])[0]["pid"] not in later  # it starts again
    pool.close()
    pool.close()


def test_a_worker_that_is_killed_while_idle_is_replaced(pool):
    pid = pool.run([1])[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    assert [reply["equal"] for reply in pool.run([1, 2, 3])] == [1, 2, 3]


def test_an_interrupt_leaves_nothing_half_done(pool, monkeypatch):
    (idle,) = {reply["pid"] for reply in pool.run([1])}
    real, calls = workers.wait, []

    def interrupted(*arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.run([7, 8, 9])
    assert len(calls) == 1
    monkeypatch.setattr(workers, "wait", real)
    assert not alive(idle)  # it was at 7: its reply would have been taken for another's
    assert [reply["equal"] for reply in pool.run([1, 2, 3])] == [1, 2, 3]


def test_a_worker_without_memory_is_replaced(pool):
    (reply,) = pool.run(["memory"])
    assert not alive(reply["pid"])
    assert pool.workers == []


def test_both_workers_work(pool):
    started = time.monotonic()
    replies = pool.run(["sleep", "sleep", "sleep", "sleep"])
    assert [reply["error"] for reply in replies] == ["more than 1 s"] * 4
    assert time.monotonic() - started < 3.9  # two rounds of a second and four starts, not four rounds


def test_only_the_workers_that_are_needed_start(script):
    pool = WorkerPool(8, 5.0, 2**31, script)
    pool.run([1, 2, 3])
    assert 1 <= len(pool.workers) <= 3
    pool.close()


def test_workers_that_never_start_are_an_error_not_a_loop(script, pool):
    Path(f"{script}.broken").touch()
    with pytest.raises(CalibrantError, match="fail to start"):
        pool.run([1, 2, 3])
    Path(f"{script}.broken").unlink()
    assert [reply["equal"] for reply in pool.run([1, 2, 3])] == [1, 2, 3]


def test_a_late_start_counts_against_no_task(script, monkeypatch):
    script.write_text(FAKE.replace("print(json.dumps", "time.sleep(1.0); print(json.dumps", 1))
    pool = WorkerPool(1, 0.9, 2**31, script)
    assert pool.run([1]) == [{"equal": 1, "pid": pool.workers[0].process.pid}]
    pool.close()
    monkeypatch.setattr(workers, "STARTUP", 0.2)
    with pytest.raises(CalibrantError, match=r"0\.2 s passed|fail to start"):
        pool.run([1])
    pool.close()


def test_a_long_task_fits_through_the_pipe(pool):
    text = "\ud800" * 300_000
    assert pool.run([text, "x"])[0]["equal"] == text


ORPHAN = f"""
import threading, time
from calibrant.text.maths.workers import WorkerPool
pool = WorkerPool(1, 1.0, 2**31)
threading.Thread(target=pool.run, args=([(*{HANGS!r}, None)],), daemon=True).start()
while not any(worker.task is not None for worker in pool.workers):
    time.sleep(0.01)
print(pool.workers[0].process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="the system has no alarm")
def test_a_hanging_worker_does_not_outlive_its_parent_for_long():
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not alive(pid), 15.0)


DATA = os.environ.get("CALIBRANT_DATA")


@pytest.mark.skipif(not DATA, reason="CALIBRANT_DATA names no folder of real rows")
@pytest.mark.parametrize("name", ["math/math500", "olympiadbench/test", "minerva_math/test", "aime24/test"])
def test_real_references_equal_themselves_in_other_forms(verifier, name):
    with gzip.open(f"{DATA}/{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        golds = [json.loads(line)["answers"][0].strip() for line in file]
    bare = [gold if r"\$" in gold else gold.replace("$", "") for gold in golds]
    for form in ("${}$", "${}$.", r"\boxed{{{}}}"):
        verdicts = verifier.verify([(form.format(answer), gold) for answer, gold in zip(bare, golds, strict=True)])
        assert verdicts.count(True) >= len(golds) - 1
