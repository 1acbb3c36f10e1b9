"""A run directory: its files, its options, and a free name for it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibrant.errors import CalibrantError
from calibrant.files import json_object, read_yaml, versions, write_yaml
from calibrant.train.settings import TrainSettings, resolve_settings


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
        """One JSON object per optimisation step."""
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
        """The trained policy, which exists once training has ended."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The page that is drawn from the other files."""
        return self.path / "report.html"

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
        """The content of `evaluation.json`; empty before the first evaluation.

        Raises:
            CalibrantError: the file is damaged.
        """
        content = json_object(self.evaluation.read_bytes()) if self.evaluation.exists() else {}
        if content is None:
            raise CalibrantError(f"'{self.evaluation}' is damaged; delete it, and what it held is made again")
        return content


def create(path: Path, settings: TrainSettings) -> Run:
    """Writes the options of a new run into its directory.

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
