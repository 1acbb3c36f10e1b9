import errno
import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from safetensors import SafetensorError

from calibrant.errors import CalibrantError
from calibrant.files import append_json_line, disk_full, read_json_lines, read_yaml, write_text, write_with
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


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    make(tmp_path / "a")
    kind = os.stat(tmp_path / "a").st_mode
    with pytest.raises(CalibrantError, match="is no file"):
        write_text(tmp_path / "a", "new")
    assert os.stat(tmp_path / "a").st_mode == kind
    assert os.listdir(tmp_path) == ["a"]


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
    [
        ("{}\n", "lacks the column"),
        ("not json\n", "is not a rollout file"),
        ('{"prompt_id": "a"}\n{bro\n', "line 2"),
        ('{"prompt_id": "a"}\n[1]\n', "line 2 is no JSON object"),
        ("[" * 100_000 + "\n", "line 1"),
        (None, "no rollout file"),
    ],
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


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("reward", "high", "'high' in the column 'reward', row 2, where a number belongs"),
        ("reward", [1], "a number"),
        ("reward", 10**400, "a number"),
        ("completion", 3, "a text"),
        ("completion", {"k": 1}, "a text"),
        ("answer", ["a"], "a text"),
        ("prompt_id", ["a"], "a text or a number"),
        ("prompt_id", None, "no prompt_id in row 2"),
        ("references", "x", "a list of texts"),
        ("references", [["x"]], "a list of texts"),
        ("num_tokens", 1.5, "a whole number"),
        ("num_tokens", 2**31, "a whole number"),
        ("cluster", 1e300, "a whole number"),
        ("correct", "yes", "true or false"),
        ("correct", 0.5, "true or false"),
        ("step", {"k": 1}, "a whole number"),
    ],
)
def test_a_value_that_is_not_what_its_column_holds_is_refused(tmp_path, column, value, said):
    path = tmp_path / "r.jsonl"
    good = {"prompt_id": "a", "completion": "x", "reward": 1.0}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, good | {column: value})))
    with pytest.raises(CalibrantError, match=said):
        read_rollouts(path)


def test_numbers_as_texts_and_numbers_as_ids_are_read_and_written_again(tmp_path):
    path = tmp_path / "r.jsonl"
    row = {"prompt_id": 7, "completion": None, "reward": "0.5", "correct": 1, "num_tokens": 3, "references": None}
    path.write_text("\ufeff" + json.dumps(row) + "\n\n" + json.dumps(row | {"reward": 10**30}))
    frame = read_rollouts(path)
    again = read_rollouts(write_rollouts(tmp_path / "r.parquet", frame.to_dict("records")))
    assert frame["prompt_id"].tolist() == again["prompt_id"].tolist() == ["7", "7"]
    assert frame["completion"].tolist() == ["", ""]
    assert again["reward"].tolist() == [0.5, 1e30]
    assert again["correct"].tolist() == [True, True]


def test_the_last_line_counts_without_an_end_and_not_when_it_is_cut_short(tmp_path):
    path = tmp_path / "r.jsonl"
    line = json.dumps({"prompt_id": "a", "completion": "x", "reward": 1.0})
    path.write_text(f"{line}\n{line}")
    assert len(read_rollouts(path)) == 2
    path.write_text(f"{line}\n{line[:-5]}")
    assert len(read_rollouts(path)) == 1


def test_a_file_without_rollouts_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(CalibrantError, match="holds no rollout"):
        read_rollouts(write_rollouts(tmp_path / "r.parquet", []))
    pd.DataFrame(ROWS * 50).to_parquet(tmp_path / "d.parquet")
    content = bytearray((tmp_path / "d.parquet").read_bytes())
    content[20:120] = b"\xff" * 100
    (tmp_path / "d.parquet").write_bytes(content)
    with pytest.raises(CalibrantError, match="is not a rollout file"):
        read_rollouts(tmp_path / "d.parquet")


@pytest.mark.parametrize("line", ["{bro", "[1]", "[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    rows = read_json_lines(path)
    assert next(rows) == {"step": 1}
    with pytest.raises(CalibrantError, match=r"metrics\.jsonl', line 2, is damaged"):
        next(rows)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(code, os.strerror(code)) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        OSError(errno.EFBIG, "Error writing bytes to file. Detail: [errno 27] File too large"),  # pyarrow
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 11032448 vs 11032336"),  # torch
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
        SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
        Exception("File too large (os error 27)"),  # tokenizers
        shutil.Error([("a", "b", "[Errno 27] File too large: 'a' -> 'b'")]),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:20]}",
)
def test_a_full_disk_is_known_by_any_of_its_names(error):
    wrapped = KeyError("something else")
    wrapped.__cause__ = error
    assert disk_full(error)
    assert disk_full(wrapped)
    assert not disk_full(KeyError("something else"))


def test_a_limit_on_file_sizes_is_a_full_disk_to_every_library_that_writes(tmp_path):
    """The errors themselves, as the libraries raise them under `ulimit -f`."""
    code = """
import resource, shutil, torch, pandas
from tokenizers import Tokenizer, models
from safetensors.torch import save_file
from calibrant.files import disk_full
open("big", "wb").write(bytes(200_000))
words = Tokenizer(models.WordLevel({str(i): i for i in range(20_000)}, unk_token="0"))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
writers = {
    "plain": lambda: open("a", "wb").write(bytes(100_000)),
    "safetensors": lambda: save_file({"x": torch.zeros(50_000)}, "b"),
    "torch": lambda: torch.save(torch.zeros(50_000), "c"),
    "parquet": lambda: pandas.DataFrame({"x": range(100_000)}).to_parquet("d"),
    "tokenizers": lambda: words.save("e"),
    "copytree": lambda: shutil.copytree(".", "f/g", ignore=shutil.ignore_patterns("f")),
}
for name, write in writers.items():
    try:
        write()
    except Exception as error:
        print(name, disk_full(error))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    names = ("plain", "safetensors", "torch", "parquet", "tokenizers", "copytree")
    assert ended.stdout.split("\n")[:-1] == [f"{name} True" for name in names], ended.stdout + ended.stderr
