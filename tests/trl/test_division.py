"""Scores once per job: two processes, each of which reads a part of the texts."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from calibrant.text.inputs import Readers
from calibrant.trl.division import divided
from calibrant.trl.passes import whole_groups

HERE = Path(__file__).parent


def test_two_processes_share_the_work_and_score_as_one(tmp_path):
    """Embeddings to the bit, entailment up to rounding; half of the work each; an error of one is raised by both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(HERE), str(HERE.parent / "text"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(HERE / "two_scoring.py"), str(tmp_path / "judge")],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("all equal") == 2


def test_a_single_process_reads_directly():
    readers = Readers(cluster=lambda groups: torch.zeros(1, 1))
    assert divided(readers, SimpleNamespace(num_processes=1)) is readers


def test_rows_of_the_groups_that_a_process_has_a_part_of():
    """Groups of 4, 6 rows per process: the middle one lies on both."""
    rows = torch.arange(12)
    for process, (groups, own) in enumerate(((range(8), range(6)), (range(4, 12), range(6, 12)))):
        read, of_these = whole_groups(6, 4, SimpleNamespace(process_index=process))
        assert rows[read].tolist() == list(groups)
        assert rows[read][of_these].tolist() == list(own)
