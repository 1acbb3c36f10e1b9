"""Tasks by name."""

from calibrant.errors import CalibrantError, nearest
from calibrant.tasks import places
from calibrant.tasks.base import Task

TASKS: dict[str, Task] = {"places": places.TASK}


def resolve(name: str) -> Task:
    """The task of a name.

    Raises:
        CalibrantError: an unknown name; it gives the nearest and all known ones.
    """
    if name not in TASKS:
        raise CalibrantError(f"unknown task '{name}'{nearest(name, TASKS)}; there are: {', '.join(TASKS)}")
    return TASKS[name]
