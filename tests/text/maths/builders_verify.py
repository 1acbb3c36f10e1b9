"""Builders and constants of the tests of maths."""

import os
from pathlib import Path

TOWER = "9^{9^{9^9}}"
HANGS = (TOWER, r"\pi")
"""A pair that sympy computes for longer than anybody waits."""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def pids(verifier):
    return {worker.process.pid for worker in verifier._pool.workers}
