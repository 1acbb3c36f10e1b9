"""Scoring on a Ray cluster of two nodes: the shards of one process, also when a node is lost. Needs calibrant[ray]."""

import numpy as np
import pandas as pd
import pytest
from builders_score import rollouts
from refusals import refused

from calibrant import ray_cluster
from calibrant.rollouts import write_rollouts
from calibrant.score import command
from calibrant.score.command import score_file
from calibrant.score.settings import ScoreSettings


def scored(file, out, **more):
    score_file(ScoreSettings(file=str(file), out=str(out), shard_rows=40, **more), lambda note: None)
    return pd.concat([pd.read_parquet(path) for path in sorted(out.glob("part-*"))], ignore_index=True)


def test_without_ray_it_is_said_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    file = write_rollouts(tmp_path / "r.jsonl", rollouts())
    said = refused(capsys, "score", str(file), "--ray", "local", "--out", str(tmp_path / "out"))
    assert said.endswith("needs Ray, which is not installed; pip install 'calibrant[ray]'")


@pytest.fixture
def cluster():
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    nodes = [made.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
    made.wait_for_nodes()
    yield made, nodes
    made.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True])
def test_two_nodes_give_the_shards_of_one_process(tmp_path, monkeypatch, cluster, lost):
    made, nodes = cluster
    file = write_rollouts(tmp_path / "r.jsonl", rollouts(300))
    expected = scored(file, tmp_path / "alone")
    add, shards = command.Shards.add, []

    def add_and_lose(self, *arguments):
        add(self, *arguments)
        shards.append(arguments)
        if lost and len(shards) == 5:
            made.remove_node(nodes[0], allow_graceful=False)

    monkeypatch.setattr(command.Shards, "add", add_and_lose)
    found = scored(file, tmp_path / "cluster", ray=made.address)
    assert len(shards) == 30 and "gcpo_cd/weight" in found
    pd.testing.assert_frame_equal(found, expected)
    assert np.isfinite(found["gcpo_bot/weight"]).all()


@pytest.mark.slow
def test_no_cluster_at_an_address_is_said(tmp_path, capsys):
    pytest.importorskip("ray")
    file = write_rollouts(tmp_path / "r.jsonl", rollouts())
    said = refused(capsys, "score", str(file), "--no-embeddings", "--ray", "auto", "--out", str(tmp_path / "out"))
    assert "no Ray cluster at 'auto'" in said and "ray start --head" in said
