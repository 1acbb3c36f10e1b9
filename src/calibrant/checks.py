"""Checks of arguments. Errors are CalibrantError; they start with the name of the function that was called."""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from calibrant.errors import CalibrantError

MAY_BE_EMPTY = ("N", "T", "...")
"""Axes that may have length 0; a group without rollouts or an embedding without width is an error."""


def check_shapes(caller: str, **arguments: tuple[Tensor | None, str]) -> None:
    """Raises unless each tensor has the axes that its letters name, of one length per letter.

    Arguments are name = (tensor, letters), letters separated by spaces; a leading `...` allows further batch axes. None
    is not checked. An argument named `where` has to be boolean.

    >>> check_shapes("f", rewards=(torch.zeros(2, 4), "N G"), where=(torch.ones(2, 3, dtype=torch.bool), "N G"))
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: expected rewards [N, G] and where [N, G], got rewards [2, 4] and where [2, 3]: \
G is 4 in rewards and 3 in where
    """
    sizes: dict[str, tuple[object, str]] = {}
    for name, (tensor, letters) in arguments.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise CalibrantError(f"{caller}: {name} has to be a tensor {_brackets(letters)}, got {_kind(tensor)}")
        problem = _mismatch(name, tensor, letters.split(), sizes)
        if problem:
            raise CalibrantError(f"{caller}: {_comparison(arguments)}: {problem}")
        if name == "where" and tensor.dtype != torch.bool:
            raise CalibrantError(f"{caller}: where has to be a boolean mask {_brackets(letters)}, got {tensor.dtype}")


def check_grouped(caller: str, **tensors: Tensor | None) -> None:
    """Raises unless all tensors are `[N, G]` of one length each, as `check_shapes` does."""
    check_shapes(caller, **{name: (tensor, "N G") for name, tensor in tensors.items()})


def _mismatch(name: str, tensor: Tensor, letters: list[str], sizes: dict[str, tuple[object, str]]) -> str:
    """What is wrong with one tensor, or an empty string; remembers the lengths of its axes in `sizes`."""
    batched = letters[0] == "..."
    named = letters[1:] if batched else letters
    if tensor.ndim < len(named) or (tensor.ndim > len(named) and not batched):
        return f"{name} has {tensor.ndim} axes instead of {'at least ' * batched}{len(named)}"
    split = tensor.ndim - len(named)
    lengths: list[tuple[str, object]] = list(zip(named, tensor.shape[split:], strict=True))
    for letter, length in [("...", list(tensor.shape[:split])), *lengths]:
        expected, owner = sizes.setdefault(letter, (length, name))
        if length != expected:
            return f"{letter} is {expected} in {owner} and {length} in {name}"
        if length == 0 and letter not in MAY_BE_EMPTY:
            return f"{letter} is 0 in {name}"
    return ""


def _comparison(arguments: dict[str, tuple[Tensor | None, str]]) -> str:
    present = [(name, x, letters) for name, (x, letters) in arguments.items() if x is not None]
    expected = " and ".join(f"{name} {_brackets(letters)}" for name, _, letters in present)
    shapes = " and ".join(f"{name} {list(x.shape) if isinstance(x, Tensor) else _kind(x)}" for name, x, _ in present)
    return f"expected {expected}, got {shapes}"


def _brackets(letters: str) -> str:
    return f"[{', '.join(letters.split())}]"


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def check_non_negative(caller: str, **numbers: float) -> None:
    """Raises unless each number is finite and at least 0.

    >>> check_non_negative("f", alpha=-0.5)
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: alpha has to be a finite number of at least 0, got -0.5
    """
    for name, value in numbers.items():
        if not is_number(value) or not math.isfinite(value) or value < 0:
            raise CalibrantError(f"{caller}: {name} has to be a finite number of at least 0, got {value!r}")


def check_reward_range(caller: str, reward_range: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest reward, as floats; raises unless they are finite and the second is above the first.

    >>> check_reward_range("f", [0, 2])
    (0.0, 2.0)
    """
    pair = list(reward_range) if isinstance(reward_range, Sequence) and not isinstance(reward_range, str) else []
    if len(pair) == 2 and all(is_number(x) and math.isfinite(x) for x in pair) and pair[0] < pair[1]:
        return float(pair[0]), float(pair[1])
    raise CalibrantError(
        f"{caller}: reward_range has to be (lowest, highest), two finite numbers with lowest < highest, "
        f"got {reward_range!r}"
    )


def is_number(value: object) -> bool:
    """Whether it is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_option(caller: str, choices: Sequence[str | None], **option: str | None) -> None:
    """Raises unless each option is one of the choices.

    >>> check_option("f", ["hard", "soft"], gate="sof")
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: gate has to be one of 'hard', 'soft', got 'sof'
    """
    for name, value in option.items():
        if value not in choices:
            raise CalibrantError(f"{caller}: {name} has to be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_positive(caller: str, **numbers: float) -> None:
    """Raises unless each number is finite and above 0.

    >>> check_positive("f", tau=0.0)
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: tau has to be a finite number above 0, got 0.0
    """
    for name, value in numbers.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise CalibrantError(f"{caller}: {name} has to be a finite number above 0, got {value!r}")


def check_share(caller: str, **numbers: float) -> None:
    """Raises unless each number is in [0, 1].

    >>> check_share("f", quantile=1.5)
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: quantile has to be a number in [0, 1], got 1.5
    """
    for name, value in numbers.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise CalibrantError(f"{caller}: {name} has to be a number in [0, 1], got {value!r}")


def check_around_one(caller: str, low: float, high: float) -> None:
    """Raises unless `low <= 1 <= high`, so that weights that are clipped to them can be 1.

    >>> check_around_one("f", 0.5, 0.9)
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: low and high have to be finite with low <= 1 <= high, got 0.5 and 0.9
    """
    if not (is_number(low) and is_number(high) and -math.inf < low <= 1 <= high < math.inf):
        raise CalibrantError(
            f"{caller}: low and high have to be finite with low <= 1 <= high, got {low!r} and {high!r}"
        )
