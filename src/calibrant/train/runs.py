"""A run directory: its files, its options, and a free name for it."""

from pathlib import Path

from calibrant.errors import CalibrantError
from calibrant.files import JsonObject, json_object, read_yaml, versions, write_yaml
from calibrant.options import plain_values
from calibrant.train.settings import TrainSettings, resolve_settings


class Run:
    """Paths and contents of a run directory."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.yaml"  # resolved options, versions and seeds
        self.metrics = path / "metrics.jsonl"  # one JSON object per optimisation step
        self.rollouts = path / "rollouts"  # folder of rollout files
        self.evaluation = path / "evaluation.json"  # before and after training
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"  # the trained policy; exists once training has ended
        self.report = path / "report.html"  # drawn from the other files

    def settings(self) -> TrainSettings:
        """The options that the run was started with."""
        if not self.config.is_file():
            raise CalibrantError(f"'{self.path}' is not a run directory (no config.yaml); give the --out of the run")
        config = read_yaml(self.config)
        if (command := config.get("command", "train")) != "train":
            raise CalibrantError(f"'{self.path}' was written by `calibrant {command}`; give the --out of a run")
        if not isinstance(config.get("settings"), dict):
            raise CalibrantError(f"'{self.config}' has no settings; start a new run")
        return resolve_settings(config["settings"])

    def evaluations(self) -> JsonObject:
        """The content of `evaluation.json`; empty before the first evaluation."""
        content = json_object(self.evaluation.read_bytes()) if self.evaluation.exists() else {}
        if content is None:
            raise CalibrantError(f"'{self.evaluation}' is damaged; delete it, and --resume evaluates again")
        return content


def create(path: Path, settings: TrainSettings) -> Run:
    """Writes the options of a new run into its directory, which has to be empty."""
    if path.exists() and (not path.is_dir() or any(not file.name.startswith(".") for file in path.iterdir())):
        if not (path / "config.yaml").exists():
            raise CalibrantError(f"the output directory '{path}' holds other files; give another --out")
        raise CalibrantError(
            f"the output directory '{path}' holds another run; give another --out, or continue it with --resume {path}"
        )
    run = Run(path)
    write_yaml(run.config, config_of(settings))
    return run


def config_of(settings: TrainSettings) -> JsonObject:
    """The content of `config.yaml`."""
    return {"command": "train", "settings": plain_values(settings), "versions": versions()}


def default_path(settings: TrainSettings, root: Path = Path("runs")) -> Path:
    """`runs/TASK-METHOD-seedN`, with a number appended if it exists."""
    name = f"{settings.task}-{settings.method}-seed{settings.seed}"
    candidates = [root / name, *(root / f"{name}-{i}" for i in range(2, 10_000))]
    return next(path for path in candidates if not path.exists())
