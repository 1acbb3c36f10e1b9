"""How the answers of rollouts are read: by a task, or without one by their texts."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from calibrant.tasks.base import Task
from calibrant.text.inputs import TextGroups, VerdictFunction, by_key
from calibrant.text.metrics import normalise_answer


class AnswerRules(NamedTuple):
    """What is known of answers before a model is asked."""

    extract: Callable[[str], str]  # completion -> answer
    cluster: Callable[[TextGroups], Tensor]  # without an entailment model
    judge: VerdictFunction | None
    meaning: str  # `answer` or `completion`, which is embedded and clustered
    reward_range: tuple[float, float]


def answer_rules(task: Task | None) -> AnswerRules:
    """The rules of a task; without one answers are whole completions, and equal ones are a cluster.

    >>> answer_rules(None).extract(" 12 \\n")
    '12'
    """
    if task is None:
        return AnswerRules(str.strip, by_key(normalise_answer), None, "answer", (0.0, 2.0))
    reward_range = task.reward_range if task.kind != "chat" else (0.0, 2.0)
    return AnswerRules(task.extract, task.clusters, task.correct_batch, task.meaning, reward_range)
