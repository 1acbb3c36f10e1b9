"""What stands for the trainers where they cannot be imported: the cause, for whoever asks for one."""

from types import ModuleType
from typing import Any

from calibrant.errors import CalibrantError, reason
from calibrant.verl import TRAINERS


def broken(error: Exception) -> CalibrantError:
    """The error that names the cause."""
    return CalibrantError(
        f"calibrant's trainers for verl cannot be loaded ({type(error).__name__}: {reason(error)}); "
        "python -c 'import calibrant.verl.trainers' shows where"
    )


def register_broken(verl_trainers: ModuleType, error: Exception) -> None:
    """Registers trainers that raise the cause as soon as they are made."""

    class Broken(verl_trainers.PPOTrainerSync):  # type: ignore[name-defined]
        def __init__(self, *_: Any, **__: Any):
            raise broken(error) from error

    for name in TRAINERS:
        verl_trainers.register_trainer(name)(Broken)
