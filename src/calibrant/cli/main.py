"""`calibrant`: runs a command; an error is one line."""

import argparse
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from calibrant import __version__
from calibrant.errors import CalibrantError, nearest
from calibrant.files import disk_full

COMMANDS = {
    "train": "train a model with a calibrated method",
    "analyze": "before training: which signals follow the gradient variance of a model on its data",
    "evaluate": "evaluate a model: answer metrics and calibration",
    "score": "score the rollouts of a file with every method whose inputs it has",
    "report": "write the report of a run or of an analysis again",
    "check-prefix": "compare the shared computation of prompts with the plain forward, for a model",
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
"""What an operating system says of a path that a user has to change."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the error and where the options are listed, and exits with status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0 when it succeeded, 1 where `check-prefix` found a difference, 2 after bad input, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")
    try:
        return _run(arguments)
    except CalibrantError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("calibrant: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:
        if disk_full(error):
            return _fail(
                "the disk is full, or a quota or limit on file sizes is reached; raise it or free some space and go on "
                "(train: with --resume; analyze: by the same command), nothing that was saved is lost"
            )
        if _memory_full(error):
            return _fail(f"not enough memory ({_short(str(error))}); ask for less at once, e.g. fewer --rollouts")
        if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
            return _fail(f"'{_short(str(error.filename))}' cannot be used ({error.strerror}); give another path")
        raise


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="calibrant", description="Uncertainty-calibrated group policy optimisation for language models.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"calibrant {__version__}")
    commands = "\n".join(f"  {name:<13} {summary}" for name, summary in COMMANDS.items())
    parser.add_argument("command", metavar="COMMAND", help=f"one of: {', '.join(COMMANDS)}")
    parser.description = f"{parser.description}\n\ncommands:\n{commands}"
    name = parser.parse_args(arguments[:1]).command
    if name not in COMMANDS:
        parser.error(f"unknown command '{name}'{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    command = importlib.import_module(f"calibrant.cli.{name.replace('-', '_')}")
    options = Parser(
        prog=f"calibrant {name}", description=command.__doc__, epilog=command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    command.add_options(options)
    parsed, unknown = options.parse_known_args(arguments[1:])
    if unknown:
        known = [flag for action in options._actions for flag in action.option_strings]
        options.error(f"unknown option '{unknown[0]}'{nearest(unknown[0], known)}")
    status: int = command.run(parsed)
    return status


def _fail(message: str) -> int:
    print(f"calibrant: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _memory_full(error: BaseException) -> bool:
    """Whether an error comes from full memory; torch has words of its own for it."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "OutOfMemory" in type(error).__name__


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."
