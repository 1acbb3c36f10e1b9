import json
import os

import pandas as pd
import pytest

from calibrant.errors import CalibrantError
from calibrant.files import append_json_line, read_json_lines, read_yaml, write_text, write_with
from calibrant.rollouts import read_rollouts, write_rollouts


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(file):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_with(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    append_json_line(path, {"step": 1, "text": "a\u2028b"})
    with path.open("a") as file:
        file.write('{"step": 2, "rew')
    assert list(read_json_lines(path)) == [{"step": 1, "text": "a\u2028b"}]


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "!!python/object/apply:os.system ['true']", "\x00"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(CalibrantError):
        read_yaml(tmp_path / "c.yaml")


ROWS = [
    {
        "prompt_id": "a",
        "rollout": 0,
        "completion": "x\u2028</script>",
        "reward": 1.0,
        "references": ["x"],
        "score": 0.5,
    },
    {"prompt_id": "a", "rollout": 1, "completion": "", "reward": float("nan"), "references": [], "score": 0.25},
]


@pytest.mark.parametrize("name", ["r.parquet", "r.jsonl"])
def test_rollouts_come_back(tmp_path, name):
    frame = read_rollouts(write_rollouts(tmp_path / name, ROWS))
    assert frame.completion.tolist() == ["x\u2028</script>", ""]
    assert frame.reward[0] == 1.0
    assert pd.isna(frame.reward[1])
    assert frame.score.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{}\n", "lacks the column"), ("not json\n", "is not a rollout file"), (None, "no rollout file")],
)
def test_what_is_no_rollout_file_is_refused(tmp_path, content, said):
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CalibrantError, match=said):
        read_rollouts(path)


def test_a_cut_parquet_file_is_refused(tmp_path):
    path = write_rollouts(tmp_path / "r.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CalibrantError, match="is not a rollout file"):
        read_rollouts(path)


def test_json_lines_of_rollouts_are_json(tmp_path):
    path = write_rollouts(tmp_path / "r.jsonl", ROWS[:1])
    assert json.loads(path.read_text())["prompt_id"] == "a"
