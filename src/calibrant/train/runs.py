"""A run directory: what a run wrote, and what a later command may trust."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibrant.errors import CalibrantError
from calibrant.files import json_object, read_json_lines, read_yaml, versions, write_json, write_json_lines, write_yaml
from calibrant.policy import references
from calibrant.train.settings import TrainSettings, resolve_settings
from calibrant.trl import memory

COMPLETE = "complete.json"
TRAINING_STATE = (
    COMPLETE, memory.FILE, references.FILE, "*.pt", "*.pth", "*.bin", "trainer_state.json", "global_step*",
)  # fmt: skip
"""Files of a checkpoint that are no part of the policy."""


@dataclass(frozen=True)
class Run:
    """Paths of a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        """Resolved options, versions and seeds."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        """Folder of rollout files."""
        return self.path / "rollouts"

    @property
    def evaluation(self) -> Path:
        """Evaluation before and after training."""
        return self.path / "evaluation.json"

    @property
    def model(self) -> Path:
        """The trained policy, there only when training has ended."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def settings(self) -> TrainSettings:
        """The options that the run was started with.

        Raises:
            CalibrantError: this is no run directory.
        """
        if not self.config.is_file():
            raise CalibrantError(f"'{self.path}' is not a run directory (no config.yaml); give what --out named")
        config = read_yaml(self.config)
        if config.get("command", "train") != "train":
            raise CalibrantError(
                f"'{self.path}' is no run: `calibrant {config['command']}` wrote it; give what --out named"
            )
        if not isinstance(config.get("settings"), dict):
            raise CalibrantError(f"'{self.config}' has no settings; the run cannot be read, start a new one")
        return resolve_settings(config["settings"])

    def evaluations(self) -> dict[str, Any]:
        """What `evaluation.json` holds; empty before the first evaluation."""
        return _object(self.evaluation) if self.evaluation.exists() else {}


def _object(path: Path) -> dict[str, Any]:
    found = json_object(path.read_bytes())
    if found is None:
        raise CalibrantError(f"'{path}' is damaged; delete it, and what it held is made again")
    return found


def create(path: Path, settings: TrainSettings) -> Run:
    """Makes a run directory.

    Raises:
        CalibrantError: the directory holds something already.
    """
    if path.exists() and (not path.is_dir() or any(not file.name.startswith(".") for file in path.iterdir())):
        if not (path / "config.yaml").exists():
            raise CalibrantError(f"the output directory '{path}' holds other files; give another --out")
        raise CalibrantError(
            f"the output directory '{path}' holds another run; give another --out, or continue it with --resume {path}"
        )
    run = Run(path)
    write_yaml(run.config, config_of(settings))
    return run


def config_of(settings: TrainSettings) -> dict[str, Any]:
    """The content of `config.yaml`."""
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
    return {"command": "train", "settings": plain, "versions": versions()}


def default_path(settings: TrainSettings, root: Path = Path("runs")) -> Path:
    """`runs/TASK-METHOD-seedN`, numbered where that is taken."""
    name = f"{settings.task}-{settings.method}-seed{settings.seed}"
    taken = [root / name, *(root / f"{name}-{i}" for i in range(2, 10_000))]
    return next(path for path in taken if not path.exists())


def mark_complete(checkpoint: Path, *, step: int, method: str) -> None:
    """Says that a checkpoint was written to its end; one without this mark is never read."""
    write_json(checkpoint / COMPLETE, {"step": step, "method": method})


def last_checkpoint(run: Run, method: str) -> Path | None:
    """The newest checkpoint that was written to its end, or None.

    Raises:
        CalibrantError: it belongs to another method.
    """
    marks = sorted(run.checkpoints.glob(f"checkpoint-*/{COMPLETE}"), key=lambda mark: step_of(mark.parent))
    if not marks:
        return None
    found = _object(marks[-1]).get("method")
    if found != method:
        raise CalibrantError(
            f"the checkpoint '{marks[-1].parent}' was trained with '{found}', the run says '{method}'; "
            "start a new run with --out"
        )
    return marks[-1].parent


def rewind(run: Run, checkpoint: Path | None) -> None:
    """Removes what was written after a checkpoint, so that a resumed run writes it again."""
    step = step_of(checkpoint) if checkpoint else 0
    kept = [row for row in read_json_lines(run.metrics) if row.get("step", 0) <= step]
    if run.metrics.exists():
        write_json_lines(run.metrics, kept)
    for partial in run.checkpoints.glob("checkpoint-*"):
        if not (partial / COMPLETE).exists():
            shutil.rmtree(partial)
    for partial in run.path.rglob(".*.*"):
        if partial.is_file():
            partial.unlink()


def publish(checkpoint: Path, path: Path) -> None:
    """Copies a checkpoint's policy and tokenizer, without the state of training, to `path`: whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial, ignore=shutil.ignore_patterns(*TRAINING_STATE))
    partial.replace(path)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written.

    >>> step_of(Path("runs/mine/checkpoints/checkpoint-40"))
    40
    """
    return int(checkpoint.name.rpartition("-")[2])
