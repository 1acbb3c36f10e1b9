"""The user's own code: imported by dotted path, and called so that what goes wrong in it is one sentence."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from calibrant.errors import CalibrantError, nearest


def import_object(path: str, role: str) -> Any:
    """The object that a dotted path names, e.g. `my_package.my_module.name`; `role` says in errors what it is for.

    The current folder is searched first, as `python -m` does. Importing runs the code of the module.
    """
    module_name, _, name = path.rpartition(".")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise any type
        absent = isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]
        hint = "; run in its folder, or put that on PYTHONPATH" if absent else ""
        raise CalibrantError(
            f"{role} '{path}': the module '{module_name}' cannot be imported ({type(error).__name__}: {error}){hint}"
        ) from error
    if not hasattr(module, name):
        hint = nearest(name, [key for key in vars(module) if key[0] != "_"])
        raise CalibrantError(f"{role} '{path}': the module '{module_name}' has no '{name}'{hint}")
    return getattr(module, name)


def callable_name(function: Callable[..., object]) -> str:
    """The name of a function, as TRL names reward functions: without `functools.partial`, or of an object's class.

    >>> callable_name(functools.partial(len)), callable_name(int)
    ('len', 'int')
    """
    function = _unwrapped(function)
    return str(getattr(function, "__name__", type(function).__name__))


def is_async(function: Callable[..., object]) -> bool:
    """Whether calling it returns a coroutine."""
    function = _unwrapped(function)
    call = getattr(function, "__call__", None)  # of an object whose class is called
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _unwrapped(function: Callable[..., object]) -> Callable[..., object]:
    while isinstance(function, functools.partial):
        function = function.func
    return function


@dataclass(frozen=True)
class Guard:
    """Calls a function of the user.

    Attributes:
        role: what it is for, e.g. "reward function".
        wanted: what to do about a failure, e.g. "return one number per completion".
        name: its name; that of the function when None.

    >>> Guard(len, "judge", "return a list")(5)
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: the judge 'len' raised TypeError: object of type 'int' has no len(); return a list
    """

    function: Callable[..., Any]
    role: str
    wanted: str
    name: str | None = None

    def __call__(self, *arguments: object, at: str = "", **keywords: object) -> Any:
        """What the function returns; generators are run to their end."""
        try:
            return self.call(*arguments, **keywords)
        except Exception as error:
            raise self.failed(error, at) from error

    def call(self, *arguments: object, **keywords: object) -> Any:
        """The same, with the function's own exceptions."""
        returned = self.function(*arguments, **keywords)
        return list(returned) if isinstance(returned, Iterator) else returned

    def failed(self, error: Exception, at: str = "") -> CalibrantError:
        """The error for an exception in the function."""
        return CalibrantError(f"{self.title} raised {describe(error)}{at}; {self.wanted}")

    def refused(self, returned: object, at: str = "") -> CalibrantError:
        """The error for something that it must not return."""
        return CalibrantError(f"{self.title} returned {short_form(returned)}{at}; {self.wanted}")

    def values(self, returned: object, count: int, what: str) -> list[object]:
        """The values that were returned, one per completion: of a list, a tuple, an array, a tensor on any device."""
        values = _listed(returned)
        if values is None:
            raise self.refused(returned)
        if len(values) != count:
            raise CalibrantError(
                f"{self.title} returned {len(values)} {what} for {count} completions; return one per completion"
            )
        return values

    @property
    def title(self) -> str:
        """Role and name."""
        return f"the {self.role} '{self.name or callable_name(self.function)}'"


def describe(error: Exception) -> str:
    """Type and first line of an exception."""
    return f"{type(error).__name__}: {((str(error).strip() or 'no message').splitlines())[0]:.200}"


def short_form(value: object) -> str:
    """A value in at most 60 characters."""
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) and value.ndim else f"{value!r:.60}"


def _listed(returned: object) -> list[object] | None:
    """The values of an array or of an iterable with an order; None for single values, texts, mappings and sets."""
    if isinstance(returned, Tensor) and returned.is_meta:
        return None
    if hasattr(returned, "tolist"):
        values = returned.tolist()
        column = isinstance(values, list) and all(isinstance(x, list) and len(x) == 1 for x in values)
        return [x[0] for x in values] if column else values if isinstance(values, list) else None
    if isinstance(returned, (str, bytes, Mapping, Set)) or not isinstance(returned, Iterable):
        return None
    return list(returned)
