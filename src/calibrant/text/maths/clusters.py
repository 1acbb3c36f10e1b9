"""Clusters of answers that are mathematically equal."""

from collections.abc import Sequence

from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.signals.clusters import greedy_clusters
from calibrant.text.keys import number
from calibrant.text.maths.verify import Verifier


def symbolic_clusters(groups: Sequence[Sequence[str]], verifier: Verifier) -> Tensor:
    """Clusters `[N, G]` of mathematically equal answers, int64, 0, 1, ... in order of first appearance.

    Each answer joins the first cluster whose first member it equals, else opens one; an empty answer is a cluster of
    its own. Answers with equal `number` keys are equal; the verifier decides the other pairs (answer, first member),
    one step of all groups per call. Unscorable pairs are unequal.

    Reference: EMPO's code, the branch that assigns to the first match (a); keys before the verifier are ours (c).
    """
    if any(isinstance(group, str) for group in groups):
        raise CalibrantError("symbolic_clusters: expected N lists of G answers, got a flat list; split it into groups")
    keys = [[number(answer) for answer in group] for group in groups]
    written = [dict(reversed(list(zip(row, group, strict=True)))) for row, group in zip(keys, groups, strict=True)]
    queues = [[key for key in dict.fromkeys(row) if key] for row in keys]
    seeds: list[dict[str, str]] = [{} for _ in groups]
    for step in range(max(map(len, queues), default=0)):
        active = [(n, queue[step]) for n, queue in enumerate(queues) if step < len(queue)]
        pairs = [(n, key, seed) for n, key in active for seed in dict.fromkeys(seeds[n].values())]
        verdicts = verifier.verify([(written[n][key], written[n][seed]) for n, key, seed in pairs])
        for (n, key, seed), equal in zip(pairs, verdicts, strict=True):
            if equal:
                seeds[n].setdefault(key, seed)
        for n, key in active:
            seeds[n].setdefault(key, key)
    return greedy_clusters([[seeds[n].get(key, "") for key in row] for n, row in enumerate(keys)])
