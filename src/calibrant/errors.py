"""Errors that a user can act on, and the nearest names to a misspelt one."""

import difflib
from collections.abc import Iterable


class CalibrantError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class Stopped(Exception):
    """Work was stopped on request (Ctrl-C); the message says how to continue it. The exit status is 130."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` with the nearest known name, or an empty string.

    >>> nearest("gcpo_bott", ["grpo", "gcpo_bot"])
    " (did you mean 'gcpo_bot'?)"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" (did you mean '{close[0]}'?)" if close else ""


def reason(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where it has none.

    >>> reason(ValueError("no such file\\nsee the manual")), reason(KeyError())
    ('no such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(ids: list[str], most: int = 5) -> str:
    """The first of some names, followed by dots if there are more."""
    return ", ".join(ids[:most]) + (", ..." if len(ids) > most else "")
