"""Checkpoints of a run: marked with checksums once they are complete, verified before they are read."""

import contextlib
import logging
import shutil
from pathlib import Path
from zipfile import ZipFile

from safetensors import safe_open
from transformers import PreTrainedModel

from calibrant import method_state
from calibrant.errors import CalibrantError
from calibrant.files import flush, json_object, read_json_lines, sha256, write_json, write_json_lines
from calibrant.policy import references
from calibrant.train.runs import Run

log = logging.getLogger(__name__)

COMPLETE = "complete.json"
TRAINING_STATE = (
    COMPLETE, method_state.FILE, references.FILE, "*.pt", "*.pth", "*.bin", "trainer_state.json", "global_step*", "ref",
)  # fmt: skip
"""Files of a checkpoint that are not part of the policy."""

REQUIRED = ("*model*.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state*.pth")
"""Files needed to resume exactly; sharded checkpoints (DeepSpeed, FSDP) have folders in their place."""


def mark_complete(checkpoint: Path, *, step: int, method: str) -> None:
    """Writes the size and SHA-256 of every file of a checkpoint, once all of them are on the disk.

    A checkpoint without this mark was not written completely, and is never read.
    """
    flush(checkpoint)
    files = {str(file.relative_to(checkpoint)): _fingerprint(file) for file in _files(checkpoint)}
    write_json(checkpoint / COMPLETE, {"step": step, "method": method, "files": files})
    flush(checkpoint)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != COMPLETE)


def _fingerprint(file: Path) -> dict[str, int | str]:
    return {"size": file.stat().st_size, "sha256": sha256(file)}


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if every file has the size and checksum that it was written with.

    Earlier versions marked checkpoints without checksums: their files have to exist and to be readable.
    """
    if not (checkpoint / COMPLETE).exists():
        return f"'{checkpoint}' was not written completely"
    mark = json_object((checkpoint / COMPLETE).read_bytes())
    if mark is None or "method" not in mark or not isinstance(mark.get("files", {}), dict):
        return f"'{checkpoint / COMPLETE}' is damaged"
    if "files" not in mark:
        return unreadable(checkpoint)
    for name, fingerprint in mark["files"].items():
        if not (checkpoint / name).is_file():
            return f"'{checkpoint / name}' is missing"
        with contextlib.suppress(OSError):
            if _fingerprint(checkpoint / name) == fingerprint:
                continue
        return f"'{checkpoint / name}' is damaged"
    return None


def unreadable(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that is missing or unreadable: JSON, safetensors, PyTorch's archives."""
    sharded = any(path.is_dir() for path in checkpoint.iterdir())
    config = "adapter_config.json" if (checkpoint / "adapter_config.json").exists() else "config.json"
    for pattern in (config, *(() if sharded else REQUIRED)):
        if not list(checkpoint.glob(pattern)):
            return f"'{checkpoint / pattern}' is missing"
    return next((f"'{file}' is damaged" for file in _files(checkpoint) if not _readable(file)), None)


def _readable(file: Path) -> bool:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                return True
        if file.suffix in (".pt", ".pth"):
            return ZipFile(file).testzip() is None
        return file.suffix != ".json" or json_object(file.read_bytes()) is not None
    except Exception:  # raised by safetensors, by archives or by the operating system
        return False


def last_checkpoint(run: Run, method: str) -> Path | None:
    """The newest intact checkpoint, or None if no checkpoint was completed; warns of newer, damaged ones.

    Raises CalibrantError if it belongs to another method, or every completed checkpoint is damaged.
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
            log.warning("'%s' has no checksums: its files are readable, but may have changed", checkpoint)
        return checkpoint
    if reasons := [reason for checkpoint, reason in damaged.items() if (checkpoint / COMPLETE).exists()]:
        raise CalibrantError(
            f"every checkpoint of the run is damaged ({'; '.join(reasons)}); delete '{run.checkpoints}' to train from "
            "the start"
        )
    return None


def rewind(run: Run, checkpoint: Path | None) -> None:
    """Removes what was written after a checkpoint, so that a resumed run writes it again."""
    step = step_of(checkpoint) if checkpoint else 0
    if run.metrics.exists():
        write_json_lines(run.metrics, [row for row in read_json_lines(run.metrics) if row.get("step", 0) <= step])
    for later in run.checkpoints.glob("checkpoint-*"):
        if step_of(later) > step:
            shutil.rmtree(later)
    for partial in run.path.rglob(".*.*"):
        if partial.is_file():
            partial.unlink()


def publish(checkpoint: Path, path: Path, merged: PreTrainedModel | None = None) -> None:
    """Copies a checkpoint's policy and tokenizer, without the training state, to `path`: completely or not at all.

    A `merged` policy takes the place of the adapter.
    """
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    left_out = TRAINING_STATE if merged is None else (*TRAINING_STATE, "adapter_*", "README.md")
    shutil.copytree(checkpoint, partial, ignore=shutil.ignore_patterns(*left_out))
    if merged is not None:
        merged.save_pretrained(partial)
    flush(partial)
    partial.replace(path)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written.

    >>> step_of(Path("runs/mine/checkpoints/checkpoint-40"))
    40
    """
    return int(checkpoint.name.rpartition("-")[2])
