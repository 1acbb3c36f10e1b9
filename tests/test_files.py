import errno
import os
import shutil
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from calibrant.errors import CalibrantError
from calibrant.files import append_json_lines, disk_full, read_json_lines, read_yaml, write_text, write_with


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
    with pytest.raises(CalibrantError, match="is not a file"):
        write_text(tmp_path / "a", "new")
    assert os.stat(tmp_path / "a").st_mode == kind
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        (b'{"step": 2, "rew', [1]),
        (b'{"step": 2, "t": "\xc3', [1]),
        (b'{"step": 2}', [1, 2]),
        (b'\n \r\n{"step": 2}\r\n\n', [1, 2]),
        (b"", [1]),
    ],
)
def test_a_last_line_cut_short_is_left_out_and_empty_lines_are_skipped(tmp_path, more, steps):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf")
    append_json_lines(path, [{"step": 1, "text": "a\u2028b"}])
    path.write_bytes(path.read_bytes() + more)
    rows = list(read_json_lines(path))
    assert [row["step"] for row in rows] == steps
    assert rows[0]["text"] == "a\u2028b"


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "!!python/object/apply:os.system ['true']", "\x00"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(CalibrantError):
        read_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize("line", ["{bro", "[1]", "[" * 100_000, "3", '"\xff"', "\x00"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n', encoding="latin-1")
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
