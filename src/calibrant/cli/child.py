"""`python -m calibrant.cli.child`: does one job of a comparison, read from standard input as a line of JSON.

It ends at once when standard input is closed, which the death of the comparison does; its run is resumed later.
"""

import json
import os
import sys
import threading

from calibrant.cli.main import guarded


def main() -> int:
    """Does the job; the exit status is that of a command."""
    with os.fdopen(0, "rb", buffering=0, closefd=False) as file:
        line = file.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return guarded(lambda: _do(line))


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _do(line: bytes) -> int:
    from calibrant.compare.job import Job, do
    from calibrant.train.processes import shutdown_processes

    do(Job(**json.loads(line)))
    shutdown_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main())
