"""Files that are written completely or not at all, and folders that one process writes at a time."""

import codecs
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from calibrant.errors import CalibrantError

JsonObject = dict[str, Any]  # an object of a JSON or YAML file


def write_with(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Calls `write` with a temporary file beside `path`, then renames that to `path`, which is returned.

    A reader sees the old file or the new one; a killed process leaves at most a hidden temporary file. Raises
    CalibrantError if `path` is a folder or a device, which the rename would replace.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CalibrantError(f"'{path}' exists and is not a file; give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Writes UTF-8 text."""
    return write_with(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, data: object) -> Path:
    """Writes JSON with two spaces of indent; NaN is refused, because JSON does not have it."""
    return write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: str | Path, data: JsonObject) -> Path:
    """Writes plain YAML in the given order."""
    return write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def read_yaml(path: str | Path) -> JsonObject:
    """Reads a YAML mapping without tags and objects; raises CalibrantError for anything else."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrantError(f"cannot read '{path}': {error.strerror}; give a YAML file of options") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CalibrantError(f"'{path}' is not valid YAML ({reason}); write one 'option: value' per line") from None
    if not isinstance(data, dict):
        raise CalibrantError(f"'{path}' is not a YAML mapping; write one 'option: value' per line")
    return data


def append_json_lines(path: str | Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Appends JSON objects, one per line, in a single write; NaN is refused, because JSON does not have it."""
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, lines.encode("utf-8", "replace"))
    finally:
        os.close(handle)


def keep_lines(path: str | Path, count: int | None = None) -> None:
    """Truncates a file after `count` lines, or after its last complete line, so that more can be appended.

    Raises CalibrantError if the file has fewer complete lines.
    """
    if not Path(path).exists():
        if count:
            raise CalibrantError(f"'{path}' with {count} expected lines is missing; start anew with --out")
        return
    with open(path, "r+b") as file:
        lines = end = 0
        for line in file:
            if not line.endswith(b"\n") or lines == count:
                break
            lines, end = lines + 1, end + len(line)
        if count is not None and lines < count:
            raise CalibrantError(f"'{path}' has {lines} of {count} lines; lines were lost, start anew with --out")
        file.truncate(end)


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Writes one JSON object per line."""
    return write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json_lines(path: str | Path) -> Iterator[JsonObject]:
    """Yields the objects of a JSON Lines file, nothing if there is no file.

    Empty lines and a byte order mark are skipped, and an incomplete last line, as a killed process leaves it. Raises
    CalibrantError if another line is not an object.
    """
    if Path(path).exists():
        with open(path, "rb") as file:
            yield from json_lines(file, path)


def json_lines(lines: Iterable[bytes], path: str | Path, first: int = 1) -> Iterator[JsonObject]:
    """The objects of lines of a file, of which `first` is the number of the first; see `read_json_lines`."""
    for number, line in enumerate(lines, first):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        row, reason = _object(line)
        if row is not None:
            yield row
        elif line.endswith(b"\n") or not line.lstrip().startswith(b"{"):
            raise CalibrantError(
                f"'{path}', line {number}, is damaged: not a JSON object ({reason}); correct or delete that line"
            )


def json_object(content: bytes) -> JsonObject | None:
    """The object in UTF-8 JSON; None for anything else.

    >>> json_object(b'{"step": 1}'), json_object(b"[1]"), json_object(b"{bro")
    ({'step': 1}, None, None)
    """
    return _object(content)[0]


def _object(content: bytes) -> tuple[JsonObject | None, str]:
    """The object in UTF-8 JSON, or the reason why there is none."""
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"byte {error.start + 1} is not UTF-8"
    except (ValueError, RecursionError) as error:
        return None, str(error)
    return (value, "") if isinstance(value, dict) else (None, f"it is a {type(value).__name__}")


LOCK = ".lock"  # the file of a folder that a process locks while it writes there


class InUse(CalibrantError):
    """Another process has the lock of a folder."""


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Context manager: one process at a time enters it for a folder, which is created if it does not exist.

    The operating system releases the lock (`flock`) of a process that dies. A file system without locks is not guarded.
    A folder that was created here and is still empty at the end is removed. Raises CalibrantError if another process
    has the lock (`InUse`), or `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CalibrantError(f"'{folder}' is a file; give a folder")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder / LOCK)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _lock(path: Path) -> int:
    """A file descriptor that holds the lock of a file, into which the process writes its id."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.stat(path)):
            raise FileNotFoundError
    except FileNotFoundError:  # the process that held the lock removed the file meanwhile
        os.close(handle)
        return _lock(path)
    except BlockingIOError:
        holder = os.read(handle, 200).decode("utf-8", "replace") or "another process"
        os.close(handle)
        raise InUse(f"'{path.parent}' is in use by {holder}; wait until it has ended, or give another folder") from None
    except OSError:  # a file system without locks
        pass
    with contextlib.suppress(OSError):  # a full disk
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
    return handle


def sha256(path: str | Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """Waits until the files below a folder, and the folders with their names, are on the disk."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot flush a folder
                raise
        finally:
            os.close(handle)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space left, a quota that is used up, a limit on file sizes (`ulimit -f`)."""

DISK_FULL_MESSAGES = (
    *(words for code in DISK_FULL for words in (os.strerror(code), f"os error {code}", f"[Errno {code}]")),
    *("PytorchStreamWriter", "unexpected pos"),
)
"""Parts of messages of safetensors, tokenizers, shutil and torch, whose errors have no `errno`."""


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one in its chain of causes, says that the disk, a quota or a file size limit is full.

    >>> disk_full(OSError(errno.EFBIG, "File too large")), disk_full(ValueError("(os error 28)")), disk_full(KeyError())
    (True, True, False)
    """
    while error is not None:
        if (isinstance(error, OSError) and error.errno in DISK_FULL) or any(
            x in str(error) for x in DISK_FULL_MESSAGES
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


PACKAGES = ("calibrant", "torch", "transformers", "trl", "accelerate", "datasets", "sentence-transformers")


def versions() -> dict[str, str]:
    """Package -> version, of the packages that a result depends on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
