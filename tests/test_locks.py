"""One process at a time writes a run, an analysis or an evaluation."""

import errno
import fcntl
import os
import platform
import subprocess
import sys

import pytest
from refusals import refused

from calibrant.errors import CalibrantError
from calibrant.files import locked, write_yaml

HOLDER = f"process {os.getpid()} on {platform.node()}"


def test_the_second_is_told_who_has_the_first(tmp_path):
    with locked(tmp_path), pytest.raises(CalibrantError, match=f"is in use by {HOLDER}; wait"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_is_made_and_removed_again_if_it_stays_empty(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a" / "b").exists()
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["kept"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CalibrantError, match="is a file"), locked(tmp_path / "file"):
        pass


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    code = "from calibrant.files import locked\nwith locked('.'): print('held', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(CalibrantError, match=f"process {process.pid} on "), locked(tmp_path):
            pass
        process.kill()
        process.wait()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == HOLDER


def test_a_lock_file_that_its_owner_removes_meanwhile_is_not_taken(tmp_path, monkeypatch):
    flock = fcntl.flock

    def late(handle, how):
        monkeypatch.undo()
        (tmp_path / ".lock").unlink()
        flock(handle, how)

    monkeypatch.setattr("fcntl.flock", late)
    with locked(tmp_path), pytest.raises(CalibrantError, match="in use"), locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def unsupported(handle, how):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(tmp_path), locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--resume", "here"],
        ["train", "--out", "here"],
        ["analyze", "--queries", "1", "--rollouts", "2", "--out", "here"],
        ["evaluate", "demo", "--prompts", "1", "--samples", "1", "--out", "here"],
    ],
)
def test_every_command_that_writes_a_folder_asks(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    if "--resume" in command:
        write_yaml(tmp_path / "here" / "config.yaml", {"settings": {}})
    with locked("here"):
        before = os.listdir("here")
        assert f"'here' is in use by {HOLDER}" in refused(capsys, *command)
        assert os.listdir("here") == before
