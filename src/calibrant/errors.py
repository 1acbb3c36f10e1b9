"""Errors that a user can do something about."""


class CalibrantError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """
