"""Scoring in shards: the same numbers as in one, in several processes, and after a stop in the middle."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from builders_score import rollouts

from calibrant.cli.main import main
from calibrant.errors import CalibrantError, Stopped
from calibrant.rollouts import write_rollouts
from calibrant.score import command
from calibrant.score.command import score_file
from calibrant.score.settings import ScoreSettings

ACROSS = ("ha_dw", "dgpo", "capo")  # methods that compare groups of a batch, or remember earlier ones


@pytest.fixture
def file(tmp_path):
    return str(write_rollouts(tmp_path / "r.jsonl", rollouts()))


def scored(file, out, **more):
    notes = []
    result = score_file(ScoreSettings(file=str(file), out=str(out), embeddings=False, **more), notes.append)
    frames = [pd.read_parquet(path) for path in (sorted(out.glob("part-*")) if out.is_dir() else [out])]
    return pd.concat(frames, ignore_index=True), result, notes


def test_shards_hold_the_numbers_of_one_but_where_groups_are_compared(tmp_path, file):
    whole, result, _ = scored(file, tmp_path / "whole")
    parts, in_parts, _ = scored(file, tmp_path / "parts", shard_rows=8)
    assert (result.units, in_parts.units) == (1, 6)
    for name in (name for name in whole if not name.startswith(ACROSS) and name not in ("difficulty_anchor",)):
        if not name.startswith("ref_") and name not in ("kept_share", "difficulty_weight"):
            pd.testing.assert_series_equal(whole[name], parts[name])
    assert not np.allclose(whole["dgpo/weight"], parts["dgpo/weight"])
    assert result.summary.scores["semantic_entropy"].mean == pytest.approx(
        in_parts.summary.scores["semantic_entropy"].mean
    )
    assert result.methods == in_parts.methods


def test_memories_pass_from_shard_to_shard(tmp_path, file):
    parts, _, _ = scored(file, tmp_path / "parts", shard_rows=8, method="ha_dw")
    success = parts.groupby(parts.index // 8)["success_rate"].mean().to_numpy()
    anchors = parts["difficulty_anchor"].to_numpy()[::8]
    np.testing.assert_allclose(anchors, [success[0], *(success[:k].mean() for k in range(1, 6))], rtol=1e-6)


def test_one_file_is_the_shards_one_after_the_other(tmp_path, file):
    parts, _, _ = scored(file, tmp_path / "parts", shard_rows=8)
    joined, _, _ = scored(file, tmp_path / "one.parquet", shard_rows=8)
    pd.testing.assert_frame_equal(parts, joined)
    score_file(ScoreSettings(file=file, out=str(tmp_path / "one.jsonl"), embeddings=False, shard_rows=8))
    rows = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert [row["dgpo/weight"] for row in rows] == joined["dgpo/weight"].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "one.parquet", "parts", "r.jsonl"]


def test_rollouts_in_any_order_are_partitioned_and_get_the_same_scores(tmp_path, file):
    rows = rollouts()
    np.random.default_rng(1).shuffle(rows)
    shuffled = write_rollouts(tmp_path / "shuffled.parquet", rows)
    apart, _, notes = scored(shuffled, tmp_path / "apart", shard_rows=8)
    assert len(notes) == 1 and "lie apart" in notes[0]
    assert not (tmp_path / "apart" / "partitions").exists()
    together, _, _ = scored(file, tmp_path / "together", shard_rows=8)
    names = ["prompt_id", "completion", "reward", "logprob", "grpo/advantage", "egpo/weight", "rd_only/weight"]
    pd.testing.assert_frame_equal(
        apart[names].sort_values(["prompt_id", "logprob"], ignore_index=True),
        together[names].sort_values(["prompt_id", "logprob"], ignore_index=True),
    )


def test_processes_change_no_number(tmp_path, file):
    alone, result, _ = scored(file, tmp_path / "alone", shard_rows=8)
    together, several, _ = scored(file, tmp_path / "together", shard_rows=8, jobs=2)
    pd.testing.assert_frame_equal(alone, together)
    assert result == several


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_what_was_stopped_is_continued_to_the_same_bytes(tmp_path, monkeypatch, name, shuffle):
    rows = rollouts()
    if shuffle:
        np.random.default_rng(1).shuffle(rows)
    file = write_rollouts(tmp_path / "r.parquet", rows)
    (tmp_path / "a").mkdir()
    expected, complete, _ = scored(file, tmp_path / "a" / name, shard_rows=8)
    (tmp_path / "b").mkdir()
    add, count = command.Shards.add, []

    def stop(self, *arguments):
        if self.manifest["partitioned"] is shuffle and len(count) == 3:
            raise KeyboardInterrupt
        add(self, *arguments)
        count.append(self.manifest["partitioned"] is shuffle)

    monkeypatch.setattr(command.Shards, "add", stop)
    with pytest.raises(Stopped, match=r"stopped after [23] shards; the same command"):
        scored(file, tmp_path / "b" / name, shard_rows=8)
    monkeypatch.setattr(command.Shards, "add", lambda self, *x: (count.append(True), add(self, *x)))
    before = len(count)
    again, result, _ = scored(file, tmp_path / "b" / name, shard_rows=8)
    assert 0 < len(count) - before < complete.units
    pd.testing.assert_frame_equal(again, expected)
    assert result == complete


def test_a_complete_output_is_not_scored_again_and_another_one_is_not_touched(tmp_path, file, capsys):
    scored(file, tmp_path / "out", shard_rows=8)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    _, result, notes = scored(file, tmp_path / "out", shard_rows=8)
    assert "is complete" in notes[0] and result.summary.groups == 12
    assert main(["score", file, "--out", str(tmp_path / "out"), "--no-embeddings"]) == 2
    assert "holds scores of other settings" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(CalibrantError, match="is not empty and holds no scores"):
        scored(file, tmp_path / "full")


def test_a_bad_value_behind_the_first_shard_leaves_the_shards_and_one_in_it_leaves_nothing(tmp_path, capsys):
    rows = rollouts()
    rows[40]["reward"] = "high"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "r.jsonl").write_text(text)
    arguments = ["score", str(tmp_path / "r.jsonl"), "--no-embeddings", "--out", str(tmp_path / "out.parquet")]
    assert main([*arguments, "--shard-rows", "8"]) == 2
    assert "r.jsonl' has 'high' in the column 'reward', row 41" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_columns_that_change_their_type_from_shard_to_shard_become_text(tmp_path):
    rows = [row | {"mine": 1.5 if i < 8 else "x"} for i, row in enumerate(rollouts(4))]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(lines[:8]))
    (tmp_path / "b.jsonl").write_text("".join(lines[8:]))
    whole, _, _ = scored(tmp_path / "*.jsonl", tmp_path / "out.parquet", shard_rows=8)
    assert whole["mine"].tolist() == ["1.5"] * 8 + ["x"] * 8


@pytest.mark.slow
def test_a_killed_process_continues_to_the_same_bytes(tmp_path):
    file = write_rollouts(tmp_path / "r.jsonl", rollouts(1500))
    asked = [sys.executable, "-m", "calibrant", "score", str(file), "--no-embeddings", "--shard-rows", "40", "--out"]
    process = subprocess.Popen([*asked, str(tmp_path / "killed")])
    while not (tmp_path / "killed" / "part-00009.parquet").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    manifest = tmp_path / "killed" / "manifest.json"
    assert not json.loads(manifest.read_text())["complete"]
    for name in ("killed", "whole"):
        subprocess.run([*asked, str(tmp_path / name)], check=True)
    parts = sorted((tmp_path / "whole").glob("part-*"))
    assert len(parts) == 150
    for part in parts:
        assert pq.read_table(part).equals(pq.read_table(tmp_path / "killed" / part.name))
