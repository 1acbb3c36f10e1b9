"""The directory of an analysis: one appended line per group, so that an interrupted analysis can resume."""

import hashlib
from pathlib import Path

from torch import nn

from calibrant.analyze.settings import AnalyzeSettings
from calibrant.errors import CalibrantError
from calibrant.files import keep_lines, versions, write_yaml
from calibrant.options import plain_values
from calibrant.report.analysis_files import Analysis

MAY_CHANGE = ("recipe", "queries", "data_dir", "trust_remote_code")
"""Options that may differ when an analysis resumes: measured groups do not depend on them."""


def analysis_path(settings: AnalyzeSettings, root: Path = Path("runs")) -> Path:
    """`runs/analyze-TASK-MODEL-seedN`, with the name of the rollout file in place of the seed if there is one.

    Equal options give equal paths, so that the same command resumes its analysis.

    >>> analysis_path(AnalyzeSettings(model="Qwen/Qwen2.5-1.5B")).as_posix()
    'runs/analyze-places-Qwen2.5-1.5B-seed0'
    """
    model = Path(settings.model).resolve().name if Path(settings.model).exists() else Path(settings.model).name
    origin = Path(settings.from_rollouts).stem if settings.from_rollouts else f"seed{settings.seed}"
    return root / f"analyze-{settings.task}-{model}-{origin}"


def check_path(path: Path, settings: AnalyzeSettings) -> None:
    """Raises unless a directory is new, empty or holds an analysis with the same options."""
    if not path.exists() or (path.is_dir() and all(file.name.startswith(".") for file in path.iterdir())):
        return
    if not path.is_dir():
        raise CalibrantError(f"'{path}' is a file; give --out a directory")
    kept = Analysis(path).options()["settings"]
    kept = plain_values(type(settings)()) | kept  # options that are newer than the analysis had their defaults
    for name, value in plain_values(settings).items():
        if name not in MAY_CHANGE and kept[name] != value:
            raise CalibrantError(
                f"'{path}' holds an analysis with {name} = {kept[name]}, not {value}; give another --out"
            )


def begin(path: Path, settings: AnalyzeSettings, identity: dict[str, str]) -> Analysis:
    """Creates the directory of an analysis, or resumes the one that it holds.

    `identity` has fingerprints of the model and the rollouts, and the parameters that V(q) is of; none of these may
    have changed.
    """
    check_path(path, settings)
    analysis = Analysis(path)
    if analysis.config.exists():
        for name, value in (analysis.options().get("identity") or {}).items():
            if identity.get(name) != value:
                raise CalibrantError(f"'{path}' was begun with other {name} under the same name; give another --out")
    config = {"command": "analyze", "settings": plain_values(settings), "identity": identity, "versions": versions()}
    write_yaml(analysis.config, config)
    return analysis


def repair(analysis: Analysis) -> int:
    """Removes incomplete lines after the last whole group and returns the number of groups."""
    keep_lines(analysis.groups)
    groups = rollouts = 0
    for line in analysis.lines():
        groups, rollouts = groups + 1, rollouts + int(line["rollouts"])
    if analysis.rollouts.exists() or not analysis.options()["settings"]["from_rollouts"]:
        keep_lines(analysis.rollouts, rollouts)
    return groups


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of names, shapes and the first 64 numbers of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        first = parameter.detach().flatten()[:64].double().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + first)
    return digest.hexdigest()
