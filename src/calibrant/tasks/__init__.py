"""Tasks by name."""

from calibrant.errors import CalibrantError, nearest
from calibrant.tasks import arithmetic, contests, gsm8k, hotpotqa, math500, narrativeqa, olympiadbench, places, qasper
from calibrant.tasks.base import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        places.TASK,
        arithmetic.TASK,
        narrativeqa.TASK,
        qasper.TASK,
        hotpotqa.TASK,
        math500.TASK,
        contests.AIME24,
        contests.AIME25,
        contests.AMC23,
        contests.MINERVA,
        olympiadbench.TASK,
        gsm8k.TASK,
    )
}


def resolve(name: str) -> Task:
    """The task of a name."""
    if name not in TASKS:
        raise CalibrantError(f"unknown task '{name}'{nearest(name, TASKS)}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]


def training_task(task: Task) -> Task:
    """The task whose training split trains a policy for `task`: itself, or its `train_task`."""
    return resolve(task.train_task) if task.train_task else task
