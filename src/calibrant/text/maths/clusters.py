"""Clusters of answers that are mathematically equal."""

from collections.abc import Sequence

from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.signals.clusters import greedy_clusters
from calibrant.text.keys import number
from calibrant.text.maths.verify import Verifier


def symbolic_clusters(groups: Sequence[Sequence[str]], verifier: Verifier) -> Tensor:
    """Clusters of answers that are mathematically equal.

    The first answer of a group opens a cluster; each later one joins the first cluster whose first member it equals,
    else opens one. Answers with equal `number` keys are equal; the verifier is asked for the rest only, for the
    answers of one step of all groups at once. A pair that it cannot score is not equal.

    Args:
        groups: N lists of G answers; an empty one is a cluster of its own.
        verifier: decides pairs (answer, first member of a cluster).

    Returns:
        `[N, G]`, int64, 0, 1, ... in order of first appearance.

    Raises:
        CalibrantError: groups differ in length, or are no lists of answers.

    Reference: EMPO's code, the branch that assigns to the first match (a); keys before the verifier are ours (c).
    """
    if any(isinstance(group, str) for group in groups):
        raise CalibrantError("symbolic_clusters: expected N lists of G answers, got a flat list; split it into groups")
    keys = [[number(answer) for answer in group] for group in groups]
    written = [dict(reversed(list(zip(own, group, strict=True)))) for own, group in zip(keys, groups, strict=True)]
    queues = [[key for key in dict.fromkeys(own) if key] for own in keys]
    seeds: list[dict[str, str]] = [{} for _ in groups]
    for step in range(max(map(len, queues), default=0)):
        active = [(n, queue[step]) for n, queue in enumerate(queues) if step < len(queue)]
        asked = [(n, key, seed) for n, key in active for seed in dict.fromkeys(seeds[n].values())]
        answers = verifier.verify([(written[n][key], written[n][seed]) for n, key, seed in asked])
        for (n, key, seed), equal in zip(asked, answers, strict=True):
            if equal:
                seeds[n].setdefault(key, seed)
        for n, key in active:
            seeds[n].setdefault(key, key)
    return greedy_clusters([[seeds[n].get(key, "") for key in own] for n, own in enumerate(keys)])
