"""Checkpoints of a run: marked when they are written to their end, compared with the mark before they are read."""

import logging
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from safetensors import safe_open

from calibrant.errors import CalibrantError
from calibrant.files import flush, json_object, read_json_lines, sha256, write_json, write_json_lines
from calibrant.policy import references
from calibrant.train.runs import Run
from calibrant.trl import memory

log = logging.getLogger(__name__)

COMPLETE = "complete.json"
TRAINING_STATE = (
    COMPLETE, memory.FILE, references.FILE, "*.pt", "*.pth", "*.bin", "trainer_state.json", "global_step*",
)  # fmt: skip
"""Files of a checkpoint that are no part of the policy."""

REQUIRED = ("*model*.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state*.pth")
"""Files without which training would go on differently; sharded checkpoints (DeepSpeed, FSDP) have folders instead."""


def mark_complete(checkpoint: Path, *, step: int, method: str) -> None:
    """Writes the size and SHA-256 of every file of a checkpoint, once all of them are on the disk.

    A checkpoint without this mark was not written to its end and is never read.
    """
    flush(checkpoint)
    files = {str(file.relative_to(checkpoint)): _fingerprint(file) for file in _files(checkpoint)}
    write_json(checkpoint / COMPLETE, {"step": step, "method": method, "files": files})
    flush(checkpoint)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != COMPLETE)


def _fingerprint(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": sha256(file)}


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is as it was written.

    Earlier versions marked checkpoints without checksums: of those, all files have to be there and readable.
    """
    if not (checkpoint / COMPLETE).exists():
        return f"'{checkpoint}' was not written to its end"
    mark = json_object((checkpoint / COMPLETE).read_bytes())
    if mark is None or "method" not in mark or not isinstance(mark.get("files", {}), dict):
        return f"'{checkpoint / COMPLETE}' is damaged"
    if "files" not in mark:
        return unreadable(checkpoint)
    for name, fingerprint in mark["files"].items():
        if not (checkpoint / name).is_file():
            return f"'{checkpoint / name}' is missing"
        try:
            changed = _fingerprint(checkpoint / name) != fingerprint
        except OSError:
            changed = True
        if changed:
            return f"'{checkpoint / name}' is damaged"
    return None


def unreadable(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that is missing or cannot be read: JSON, safetensors, PyTorch's archives."""
    sharded = any(path.is_dir() for path in checkpoint.iterdir())
    config = "adapter_config.json" if (checkpoint / "adapter_config.json").exists() else "config.json"
    for pattern in (config, *(() if sharded else REQUIRED)):
        if not list(checkpoint.glob(pattern)):
            return f"'{checkpoint / pattern}' is missing"
    for file in _files(checkpoint):
        try:
            readable = _can_be_read(file)
        except Exception:  # of safetensors, of archives, of the operating system
            readable = False
        if not readable:
            return f"'{file}' is damaged"
    return None


def _can_be_read(file: Path) -> bool:
    if file.suffix == ".safetensors":
        with safe_open(file, "pt"):
            return True
    if file.suffix in (".pt", ".pth"):
        return ZipFile(file).testzip() is None
    return file.suffix != ".json" or json_object(file.read_bytes()) is not None


def last_checkpoint(run: Run, method: str) -> Path | None:
    """The newest checkpoint that is whole, or None where none was written to its end; newer ones are warned of.

    Raises:
        CalibrantError: it belongs to another method, or checkpoints were written to their end and none is whole.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in sorted(run.checkpoints.glob("checkpoint-*"), key=step_of, reverse=True):
        if reason := damage(checkpoint):
            damaged[checkpoint] = reason
            continue
        mark = json_object((checkpoint / COMPLETE).read_bytes()) or {}
        if mark.get("method") != method:
            raise CalibrantError(
                f"the checkpoint '{checkpoint}' was trained with '{mark.get('method')}', the run says '{method}'; "
                "start a new run with --out"
            )
        if damaged:
            log.warning("%s; going back to '%s'", "; ".join(damaged.values()), checkpoint)
        if "files" not in mark:
            log.warning("'%s' has no checksums: its files can be read, but may have changed", checkpoint)
        return checkpoint
    if lost := [reason for checkpoint, reason in damaged.items() if (checkpoint / COMPLETE).exists()]:
        raise CalibrantError(
            f"no checkpoint of the run is whole ({'; '.join(lost)}); delete '{run.checkpoints}' to train from the start"
        )
    return None


def rewind(run: Run, checkpoint: Path | None) -> None:
    """Removes what was written after a checkpoint, so that a resumed run writes it again."""
    step = step_of(checkpoint) if checkpoint else 0
    kept = [row for row in read_json_lines(run.metrics) if row.get("step", 0) <= step]
    if run.metrics.exists():
        write_json_lines(run.metrics, kept)
    for later in run.checkpoints.glob("checkpoint-*"):
        if step_of(later) > step:
            shutil.rmtree(later)
    for partial in run.path.rglob(".*.*"):
        if partial.is_file():
            partial.unlink()


def publish(checkpoint: Path, path: Path) -> None:
    """Copies a checkpoint's policy and tokenizer, without the state of training, to `path`: whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial, ignore=shutil.ignore_patterns(*TRAINING_STATE))
    flush(partial)
    partial.replace(path)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written.

    >>> step_of(Path("runs/mine/checkpoints/checkpoint-40"))
    40
    """
    return int(checkpoint.name.rpartition("-")[2])
