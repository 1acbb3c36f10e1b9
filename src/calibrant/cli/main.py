"""`calibrant`: runs a command; an error that a user can act on is one line."""

import argparse
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from calibrant import __version__
from calibrant.errors import CalibrantError, Stopped, nearest
from calibrant.files import disk_full

COMMANDS = {
    "train": "train a model with GRPO-style updates, scaled per group of answers",
    "analyze": "before training: which signals follow the gradient variance of a model on its data",
    "evaluate": "evaluate a model: answer metrics and calibration",
    "compare": "compare methods with several seeds each: gains with intervals, figures, one page",
    "score": "score the rollouts of a file with every method whose inputs it has",
    "report": "write the report of a run, analysis or comparison again, from its files",
    "check-prefix": "check that computing prompts once for all of their rollouts is exact for a model",
    "methods": "list the methods, or show the page of one",
    "tasks": "list the tasks",
}

EXAMPLES = """examples:
  calibrant train                                  train the embedded demo, offline, in minutes
  calibrant train --method grpo --seed 1           the same with plain GRPO
  calibrant analyze --task places --queries 200    recommend a method for a model and its data
  calibrant evaluate runs/places-gcpo_bot-seed0    evaluate the trained model
  calibrant COMMAND --help                         options and examples of a command
"""

UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
"""Errors of the operating system about a path, which a user has to change."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, prog: str, description: str, examples: str):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, None, description, examples, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Prints the error and where the options are listed, and exits with status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0 when it succeeded, 1 where `check-prefix` found a difference, 2 after bad input, 130 after Ctrl-C.
    """
    return guarded(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def guarded(command: Callable[[], int]) -> int:
    """The exit status of a command, with one line for an error that a user can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")
    try:
        return command()
    except (KeyboardInterrupt, Stopped) as stopped:
        print(f"calibrant: {str(stopped) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if (message := _message(error)) is None:
            raise
        print(f"calibrant: error: {' '.join(message.split())}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    commands = "\n".join(f"  {name:<13} {summary}" for name, summary in COMMANDS.items())
    about = f"Uncertainty-calibrated group policy optimisation for language models.\n\ncommands:\n{commands}"
    parser = Parser("calibrant", about, EXAMPLES)
    parser.add_argument("--version", action="version", version=f"calibrant {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=f"one of: {', '.join(COMMANDS)}")
    name = parser.parse_args(arguments[:1]).command
    if name not in COMMANDS:
        parser.error(f"unknown command '{name}'{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    command = importlib.import_module(f"calibrant.cli.{name.replace('-', '_')}")
    parser = Parser(f"calibrant {name}", command.__doc__ or "", command.EXAMPLES)
    command.add_options(parser)
    parsed, unknown = parser.parse_known_args(arguments[1:])
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        kind = "unknown option" if unknown[0].startswith("-") else "unexpected argument"
        parser.error(f"{kind} '{unknown[0]}'{nearest(unknown[0], flags)}")
    status: int = command.run(parsed)
    return status


def _message(error: Exception) -> str | None:
    """What is wrong and what to do, of an error that a user can act on; None of any other."""
    if isinstance(error, CalibrantError):
        return str(error)
    if disk_full(error):
        return (
            "the disk is full, or a quota or limit on file sizes is reached; free some space or raise the limit, then "
            "continue (train: with --resume; analyze, compare: with the same command); nothing that was saved is lost"
        )
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "OutOfMemory" in type(error).__name__:
        return f"not enough memory ({_short(str(error))}); compute less at once, e.g. fewer --rollouts"
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
        return f"'{_short(str(error.filename))}' cannot be used ({error.strerror}); give another path"
    return None


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
