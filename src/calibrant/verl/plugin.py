"""The entry point of verl's group `verl.plugins`: importing this module registers the trainers.

verl imports it in every process, the workers and rollout servers too, and hides what it raises. So it imports nothing
heavy and cannot fail: trainers are registered when verl's own are imported, and if they cannot be, their names stand
for a trainer that says why.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from calibrant.verl import SECTION


class _Watch(MetaPathFinder):
    """Calls `act` with a module once it has been imported."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]):
        self.name, self.act = name, act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders have, with `act` after the module's execution."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.act(module)

            setattr(spec.loader, "exec_module", exec_module)  # noqa: B010 (mypy refuses to assign to a method)
        return spec


def after_import(name: str, act: Callable[[ModuleType], None]) -> None:
    """Calls `act` with a module once it has been imported, now if it has been."""
    if name in sys.modules:
        act(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Watch(name, act))


def install() -> None:
    """Registers the trainers and the checks of their configuration, and keeps TRL from stopping verl's workers."""
    after_import("verl.trainer.ppo.v1", _register)
    after_import("verl.utils.config", _check_first)
    after_import("verl.utils.import_utils", _look_into_trl)


def _register(trainers: ModuleType) -> None:
    try:
        importlib.import_module("calibrant.verl.trainers")
    except Exception as error:
        from calibrant.verl.broken import register_broken

        register_broken(trainers, error)


def _check_first(config_module: ModuleType) -> None:
    """Wraps `validate_config`, which verl calls before it starts Ray."""
    validate = config_module.validate_config

    @functools.wraps(validate)
    def validate_config(config: Any, *arguments: Any, **keywords: Any) -> Any:
        mode = (config.trainer.get("v1") or {}).get("trainer_mode")  # other programs of verl's have no v1
        if SECTION in config or str(mode).startswith(SECTION):
            check_or_exit(config)
        return validate(config, *arguments, **keywords)

    config_module.validate_config = validate_config  # type: ignore[attr-defined]


def check_or_exit(config: Any) -> None:
    """Ends the program with one sentence and status 2 if calibrant cannot train with verl's configuration."""
    from calibrant.errors import CalibrantError

    try:
        try:
            check = importlib.import_module("calibrant.verl.trainers").check
        except Exception as error:
            from calibrant.verl.broken import broken

            raise broken(error) from error
        check(config)
    except CalibrantError as error:
        print(f"calibrant: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _look_into_trl(import_utils: ModuleType) -> None:
    """Has verl ask for the class that it imports from TRL, which TRL 1.16 has not, instead of for TRL."""

    @functools.cache
    def is_trl_available() -> bool:
        for module in ("trl.experimental.ppo", "trl"):
            with contextlib.suppress(ImportError, RuntimeError), warnings.catch_warnings(action="ignore"):
                if hasattr(importlib.import_module(module), "AutoModelForCausalLMWithValueHead"):
                    return True
        return False

    import_utils.is_trl_available = is_trl_available  # type: ignore[attr-defined]


install()
