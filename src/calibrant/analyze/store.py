"""The directory of an analysis: one line a group, appended; what an interrupted run has left is read again."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from calibrant.analyze.settings import AnalyzeSettings
from calibrant.errors import CalibrantError
from calibrant.files import keep_lines, versions, write_yaml
from calibrant.report.analysis_files import Analysis

MAY_CHANGE = ("queries", "data_dir", "trust_remote_code")
"""Options that may differ when an analysis goes on: groups that are there stay as they are."""


def default_path(settings: AnalyzeSettings, root: Path = Path("runs")) -> Path:
    """`runs/analyze-TASK-MODEL-seedN`, or the name of the file of rollouts for the seed.

    The same for the same options, so that they find what they have begun.

    >>> default_path(AnalyzeSettings(model="Qwen/Qwen2.5-1.5B")).as_posix()
    'runs/analyze-places-Qwen2.5-1.5B-seed0'
    """
    model = Path(settings.model).resolve().name if Path(settings.model).exists() else Path(settings.model).name
    origin = Path(settings.from_rollouts).stem if settings.from_rollouts else f"seed{settings.seed}"
    return root / f"analyze-{settings.task}-{model}-{origin}"


def check_path(path: Path, settings: AnalyzeSettings) -> None:
    """Raises unless a directory is free or holds an analysis with the same options.

    Raises:
        CalibrantError: it holds something else, or an analysis with other options.
    """
    if not path.exists() or (path.is_dir() and all(file.name.startswith(".") for file in path.iterdir())):
        return
    if not path.is_dir():
        raise CalibrantError(f"'{path}' is a file; give --out a directory")
    kept = Analysis(path).options()["settings"]
    for name, value in _plain(settings).items():
        if name not in MAY_CHANGE and kept.get(name) != value:
            raise CalibrantError(
                f"'{path}' holds an analysis with {name} = {kept.get(name)}, not {value}; give another --out"
            )


def begin(path: Path, settings: AnalyzeSettings, identity: dict[str, str]) -> Analysis:
    """Makes the directory of an analysis, or takes it up where it was left.

    Args:
        path: the directory.
        settings: the options.
        identity: fingerprints of what decides the numbers beside the options.

    Raises:
        CalibrantError: as `check_path`, or the model or the rollouts are not those that it was begun with.
    """
    check_path(path, settings)
    analysis = Analysis(path)
    if analysis.config.exists():
        for name, value in (analysis.options().get("identity") or {}).items():
            if identity.get(name) != value:
                raise CalibrantError(f"'{path}' was begun with other {name} under the same name; give another --out")
    config = {"command": "analyze", "settings": _plain(settings), "identity": identity, "versions": versions()}
    write_yaml(analysis.config, config)
    return analysis


def repair(analysis: Analysis) -> int:
    """Cuts off what an interrupted run has left behind its last whole group.

    Returns:
        How many groups are there.
    """
    keep_lines(analysis.groups)
    groups = rollouts = 0
    for line in analysis.lines():
        groups, rollouts = groups + 1, rollouts + int(line["rollouts"])
    if analysis.rollouts.exists() or not analysis.options()["settings"]["from_rollouts"]:
        keep_lines(analysis.rollouts, rollouts)
    return groups


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of names, shapes and the first numbers of all parameters: another checkpoint has another one."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        some = parameter.detach().flatten()[:64].double().cpu().numpy().tobytes()
        found.update(f"{name} {tuple(parameter.shape)} ".encode() + some)
    return found.hexdigest()


def _plain(settings: AnalyzeSettings) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
