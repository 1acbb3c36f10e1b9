"""Clusters of answers with one meaning, from keys or from pairwise entailment probabilities.

A rule has two parts, and every pair of them is a rule. The *relation* says when answer i and answer j go together:

* `"one_way"`: i entails j with at least the threshold.
* `"strict"`: each entails the other, entailment being its most probable label.
* `"lenient"`: neither contradicts the other, and not both are neutral about each other, by the most probable labels.

The *assignment* says which cluster an answer joins:

* `"best"`: of the clusters whose first member goes with it, that of the largest probability; of equal ones the first.
* `"first"`: the first cluster whose first member goes with it.
* `"last"`: each answer without a cluster opens one, and takes into it all later ones that go with it, those of
  earlier clusters too: the last such cluster stays.
* `"components"`: answers that are linked, over others too, are one cluster.

If labels have equal probability, contradiction goes before neutral and neutral before entailment (c). A probability
that is not finite is no relation.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from calibrant.checks import check_shapes, check_share
from calibrant.errors import CalibrantError, nearest
from calibrant.signals.entropy import ENTAILMENT, NEUTRAL, check_labels

Ask = Callable[[Tensor, Tensor, Tensor], Tensor]
Score = Callable[[Tensor, Tensor, Tensor], Tensor]

EXCLUDED = -1  # the cluster of a rollout that `where` excludes
UNRELATED = -1.0  # the score of two answers that do not go together; others have one of at least 0

RELATIONS = ("one_way", "strict", "lenient")
ASSIGNMENTS = ("best", "first", "last", "components")

RULES = {
    "greedy": ("one_way", "best"),
    "strict": ("strict", "first"),
    "strict_last": ("strict", "last"),
    "lenient": ("lenient", "first"),
    "lenient_last": ("lenient", "last"),
    "components": ("strict", "components"),
}
"""The rules with a name, each a relation and an assignment."""


def greedy_clusters(
    pairwise_or_keys: Tensor | Sequence[Sequence[Hashable]], where: Tensor | None = None, *, threshold: float = 0.35
) -> Tensor:
    """Cluster numbers of the answers of each group, `[N, G]` int64, 0, 1, ... in order of first appearance.

    From keys: equal keys share a cluster; each empty key ("" or None) is a cluster of its own.

    From entailment probabilities `p[n, i, j] = P(answer i entails answer j)`: the first answer opens a cluster; each
    later answer j is compared with the first member r of every cluster, joins the one with the LARGEST `p[n, r, j]`
    if that is at least the threshold, else opens a new one. One direction only, and the result depends on the order
    of the answers, as in the paper. Among equal probabilities the lowest cluster wins (c). NaN joins nothing.

    Args:
        pairwise_or_keys: `[N, G, G]` probabilities, or N sequences of G keys.
        where: `[N, G]`, boolean; other rollouts neither open nor join a cluster, and get -1. Functions that read the
            clusters need the same `where`: there -1 is a number like any other.
        threshold: the smallest probability that joins, in [0, 1]; not used with keys.

    Reference: GCPO, appendix E.3 (b).

    >>> greedy_clusters([["paris", "lyon", "paris", "", ""]])
    tensor([[0, 1, 0, 2, 3]])
    >>> p = torch.tensor([[[1.0, 0.2, 0.9], [0.2, 1.0, 0.4], [0.0, 0.0, 1.0]]])
    >>> greedy_clusters(p)  # 2 is entailed by 0 (0.9) and by 1 (0.4): 0 is larger
    tensor([[0, 1, 0]])
    """
    check_share("greedy_clusters", threshold=threshold)
    if not isinstance(pairwise_or_keys, Tensor):
        return _from_keys(pairwise_or_keys, where)
    check_shapes("greedy_clusters", pairwise=(pairwise_or_keys, "N G G"), where=(where, "N G"))
    p = pairwise_or_keys.detach()
    mask = torch.ones_like(p[..., 0], dtype=torch.bool) if where is None else where
    return _to_first_member(lambda n, i, j: _cut(p[n, i, j], threshold), mask, None, best=True)


def entailment_clusters(
    entailment: Tensor, rule: str | tuple[str, str] = "greedy", where: Tensor | None = None, *, threshold: float = 0.35
) -> Tensor:
    """Cluster numbers by a named rule, from the probabilities of all three labels; results as of `greedy_clusters`.

    Args:
        entailment: `[N, G, G, 3]`, probabilities of (contradiction, neutral, entailment) in this order, premise i and
            hypothesis j. The diagonal is not read. Give NaN to empty answers: they are related to none.
        rule: a name of `RULES`, or a relation and an assignment.
        threshold: the smallest probability that relates, in [0, 1]; read by the relation "one_way" only.

    Reference: "greedy": GCPO, appendix E.3 (b), the same as `greedy_clusters` on the entailment alone. "strict":
    lm-polygraph (a). "strict_last" and "lenient_last": the code of Kuhn, Gal and Farquhar (a). "lenient" and
    "components": relation and assignment of these, combined anew (c).

    >>> p = torch.zeros(1, 3, 3, 3)
    >>> p[0, :, :, 1] = 1.0  # all neutral, but 0 and 1 entail each other, and 1 and 2 do
    >>> for i, j in [(0, 1), (1, 0), (1, 2), (2, 1)]:
    ...     p[0, i, j] = torch.tensor([0.0, 0.2, 0.8])
    >>> [entailment_clusters(p, rule).tolist() for rule in ("strict", "components")]
    [[[0, 0, 1]], [[0, 0, 0]]]
    """
    check_shapes("entailment_clusters", entailment=(entailment, "N G G L"), where=(where, "N G"))
    check_labels("entailment_clusters", entailment)
    mask = torch.ones_like(entailment[..., 0, 0], dtype=torch.bool) if where is None else where
    p = entailment.detach()
    return clusters_by(lambda n, i, j: p[n, i, j], mask, rule, threshold)


def clusters_by(
    ask: Ask, where: Tensor, rule: str | tuple[str, str], threshold: float = 0.35, keys: Tensor | None = None
) -> Tensor:
    """Cluster numbers by a rule of `entailment_clusters`, which asks for just the probabilities that it needs.

    With "best" and "first", step j asks for the first member of every cluster so far and answer j, in all groups at
    once; with "last", step i for answer i, where it has no cluster, and all later answers; with "components", once for
    each pair. A symmetric relation asks for the reverse direction only where that can matter.

    With "best" and "first", an answer equal to a first member joins it without being asked for. The rule gives the same
    if equal answers entail each other with probability 1: earlier clusters did not take that member, and no later one
    has more than 1.

    Args:
        ask: from groups n, premises i and hypotheses j, `[P]` each, to probabilities of (contradiction, neutral,
            entailment), `[P, 3]`; P may be 0.
        keys: `[N, G]`, integers, equal in a group where answers are equal; None: no answers are.
    """
    relation, assignment = _parts(rule)
    check_share("clusters_by", threshold=threshold)
    scores: dict[str, Score] = {
        "one_way": lambda n, i, j: _cut(ask(n, i, j)[:, ENTAILMENT], threshold),
        "strict": lambda n, i, j: _strict(ask, n, i, j),
        "lenient": lambda n, i, j: _lenient(ask, n, i, j),
    }
    score = scores[relation]
    if assignment == "last":
        return _to_last_seed(score, where)
    if assignment == "components":
        return _components(score, where, symmetric=relation != "one_way")
    return _to_first_member(score, where, keys, best=assignment == "best")


def _parts(rule: str | tuple[str, str]) -> tuple[str, str]:
    parts = RULES.get(rule) if isinstance(rule, str) else tuple(rule)
    if parts is None:
        raise CalibrantError(f"unknown clustering rule {rule!r}{nearest(str(rule), RULES)}; known: {', '.join(RULES)}")
    if len(parts) != 2 or parts[0] not in RELATIONS or parts[1] not in ASSIGNMENTS:
        relations, assignments = ", ".join(RELATIONS), ", ".join(ASSIGNMENTS)
        raise CalibrantError(
            f"a clustering rule is a relation ({relations}) and an assignment ({assignments}), got {rule!r}"
        )
    return parts[0], parts[1]


def _cut(p: Tensor, threshold: float) -> Tensor:
    """Probabilities of at least the threshold, as compared in their own type; UNRELATED in place of the others."""
    p = p if p.is_floating_point() else p.double()
    lowest = torch.tensor(threshold, dtype=p.dtype, device=p.device)
    return torch.where(torch.isfinite(p) & (p >= lowest), p, UNRELATED).double()


def _strict(ask: Ask, n: Tensor, i: Tensor, j: Tensor) -> Tensor:
    related = _label(ask(n, i, j)) == ENTAILMENT
    back = related.nonzero()[:, 0]
    related[back] = _label(ask(n[back], j[back], i[back])) == ENTAILMENT
    return torch.where(related, 1.0, UNRELATED).double()


def _lenient(ask: Ask, n: Tensor, i: Tensor, j: Tensor) -> Tensor:
    there = _label(ask(n, i, j))
    related = there >= NEUTRAL
    back = related.nonzero()[:, 0]
    again = _label(ask(n[back], j[back], i[back]))
    related[back] = (again == ENTAILMENT) | ((again == NEUTRAL) & (there[back] == ENTAILMENT))
    return torch.where(related, 1.0, UNRELATED).double()


def _label(p: Tensor) -> Tensor:
    """The most probable label, `[P]`; -1 where a probability is not finite."""
    return torch.where(torch.isfinite(p).all(-1), p.argmax(-1), -1)


def _to_first_member(score: Score, where: Tensor, keys: Tensor | None, *, best: bool) -> Tensor:
    ids = torch.full(where.shape, EXCLUDED, dtype=torch.int64, device=where.device)
    is_first = torch.zeros_like(where)
    for j in range(where.shape[1]):
        equal = torch.zeros_like(where) if keys is None else is_first & (keys == keys[:, j, None])
        n, i = (is_first & (where[:, j] & ~equal.any(1))[:, None]).nonzero(as_tuple=True)
        scores = torch.where(equal, 1.0, UNRELATED).double()
        scores[n, i] = score(n, i, torch.full_like(i, j))
        top, member = (scores if best else (scores > UNRELATED).double() + UNRELATED).max(dim=1)
        opens = where[:, j] & (top == UNRELATED)
        joined = torch.where(opens, is_first.sum(1), ids.gather(1, member[:, None])[:, 0])
        ids[:, j] = torch.where(where[:, j], joined, EXCLUDED)
        is_first[:, j] = opens
    return ids


def _to_last_seed(score: Score, where: Tensor) -> Tensor:
    ids = torch.full(where.shape, EXCLUDED, dtype=torch.int64, device=where.device)
    count = torch.zeros_like(ids[:, 0])
    for i in range(where.shape[1]):
        opens = where[:, i] & (ids[:, i] == EXCLUDED)
        ids[:, i] = torch.where(opens, count, ids[:, i])
        n, later = (opens[:, None] & where[:, i + 1 :]).nonzero(as_tuple=True)
        j = later + i + 1
        taken = score(n, torch.full_like(j, i), j) > UNRELATED
        ids[n[taken], j[taken]] = count[n[taken]]
        count += opens
    return ids


def _components(score: Score, where: Tensor, *, symmetric: bool) -> Tensor:
    size = where.shape[1]
    asked = ~torch.eye(size, dtype=torch.bool, device=where.device)
    asked = asked.triu() if symmetric else asked
    n, i, j = (asked & where[:, :, None] & where[:, None, :]).nonzero(as_tuple=True)
    linked = torch.eye(size, dtype=torch.float64, device=where.device).repeat(len(where), 1, 1)
    linked[n, i, j] = (score(n, i, j) > UNRELATED).double()
    linked = linked + linked.mT
    for _ in range(size.bit_length()):  # twice as far each time
        linked = (linked @ linked).clamp(max=1.0)
    first = (linked > 0).double().argmax(-1)
    is_first = where & (first == torch.arange(size, device=where.device))
    number = is_first.cumsum(-1) - 1
    return torch.where(where, number.gather(-1, first), EXCLUDED)


def _from_keys(keys: Sequence[Sequence[Hashable]], where: Tensor | None) -> Tensor:
    if isinstance(keys, str) or any(isinstance(group, str) for group in keys):
        raise CalibrantError("greedy_clusters: expected N lists of G keys, got a flat list; split it into groups")
    lengths = sorted({len(group) for group in keys})
    if len(lengths) > 1:
        raise CalibrantError(f"greedy_clusters: every group needs the same number G of keys, got groups of {lengths}")
    shape = (len(keys), lengths[0] if lengths else 0)
    mask = torch.ones(shape, dtype=torch.bool) if where is None else where
    if isinstance(mask, Tensor) and mask.shape != shape:
        expected = "expected keys [N, G] and where [N, G]"
        raise CalibrantError(f"greedy_clusters: {expected}, got keys {list(shape)} and where {list(mask.shape)}")
    check_shapes("greedy_clusters", where=(mask, "..."))
    ids = [_numbered(group, counts) for group, counts in zip(keys, mask.tolist(), strict=True)]
    return torch.tensor(ids, dtype=torch.int64, device=mask.device).reshape(shape)


def _numbered(group: Sequence[Hashable], mask: Sequence[bool]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [
        numbers.setdefault((i, "empty") if key in ("", None) else (key, "key"), len(numbers)) if counts else EXCLUDED
        for i, (key, counts) in enumerate(zip(group, mask, strict=True))
    ]
