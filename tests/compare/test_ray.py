"""A comparison on a Ray cluster of two nodes, one of which dies in the middle."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders_compare import SMALL, without_times
from refusals import refused

from calibrant import ray_cluster

COMMAND = ["compare", "--methods", "grpo", "gcpo_cd", "--seeds", "0", "1", *SMALL]


def test_ray_has_to_be_installed(monkeypatch, capsys):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    assert "needs Ray, which is not installed" in refused(capsys, *COMMAND, "--ray", "auto")
    assert "leave out --jobs" in refused(capsys, *COMMAND, "--ray", "auto", "--jobs", "2")
    assert "does nothing without --ray" in refused(capsys, *COMMAND, "--ray-gpus", "1")


def start(folder: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "calibrant", *COMMAND, *options, "--out", str(folder)]
    with open(folder.parent / "said", "ab") as said:
        return subprocess.Popen(command, stdout=said, stderr=said)


def finish(process: subprocess.Popen, folder: Path) -> None:
    assert process.wait(timeout=900) == 0, (folder.parent / "said").read_text()[-3000:]


@pytest.mark.slow
def test_a_dead_node_changes_nothing_but_times(tmp_path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    sequence, folder = tmp_path / "sequence/out", tmp_path / "ray/out"
    for path in (sequence, folder):
        path.parent.mkdir()
    room = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=room | {"num_cpus": 0})
    try:
        _, dies = cluster.add_node(**room), cluster.add_node(**room)
        cluster.wait_for_nodes()
        process = start(folder, "--ray", cluster.address)
        trained = os.path.join("runs", "*", "*", "metrics.jsonl")
        end = time.monotonic() + 300
        while not list(folder.glob(trained)):
            assert time.monotonic() < end and process.poll() is None, (folder.parent / "said").read_text()[-3000:]
            time.sleep(0.1)
        cluster.remove_node(dies, allow_graceful=False)
        finish(process, folder)
    finally:
        cluster.shutdown()
    finish(start(sequence, "--jobs", "1"), sequence)
    assert without_times(folder) == without_times(sequence)
