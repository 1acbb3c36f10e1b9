"""Where a comparison keeps its files."""

from pathlib import Path

from calibrant.train.runs import Run


class Folder:
    """Paths of a comparison's directory."""

    def __init__(self, path: Path):
        self.path = path
        self.comparison = path / "comparison.json"

    def run(self, cell: str, seed: int) -> Run:
        """The run directory of a cell and a seed."""
        return Run(self.path / "runs" / cell / f"seed-{seed}")

    def evaluation(self, target: str, cell: str, seed: int) -> Path:
        """The folder with the evaluation of a trained model."""
        return self.path / "evaluations" / target / cell / f"seed-{seed}"

    def before(self, target: str, model: str) -> Path:
        """The folder with the evaluation of a model before training."""
        return self.path / "before" / target / model

    def log(self, name: str) -> Path:
        """The file with what the process of a run printed."""
        return self.path / "logs" / f"{name}.log"
