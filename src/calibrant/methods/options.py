"""Checks of hyper-parameters."""

import math
from collections.abc import Sequence
from numbers import Real

from calibrant.errors import CalibrantError


def check_option(caller: str, known: Sequence[str | None], **option: str | None) -> None:
    """Raises unless each option is one of the known ones.

    >>> check_option("f", ["hard", "soft"], gate="sof")
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: f: gate has to be one of 'hard', 'soft', got 'sof'
    """
    for name, value in option.items():
        if value not in known:
            raise CalibrantError(f"{caller}: {name} has to be one of {', '.join(map(repr, known))}, got {value!r}")


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


def is_number(value: object) -> bool:
    """Whether it is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)
