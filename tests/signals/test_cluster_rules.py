"""Clusters by relation and assignment."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.signals.clusters import ASSIGNMENTS, RELATIONS, RULES, clusters_by, entailment_clusters, greedy_clusters

NAN = math.nan
C, N, E = torch.eye(3, dtype=torch.float64)
"""Certain contradiction, neutral, entailment."""


def labelled(size, rest=N, **entries):
    """Probabilities [1, G, G, 3] that are `rest` but for `p12=E`: answer 1 entails answer 2."""
    p = rest.expand(1, size, size, 3).clone()
    for name, value in entries.items():
        p[0, int(name[1]), int(name[2])] = value
    return p


def relate(p, i, j, relation, threshold):
    """Whether i and j go together, from nested lists; a plain loop over labels."""
    if relation == "one_way":
        return all(map(math.isfinite, p[i][j])) and p[i][j][2] >= threshold
    if not all(map(math.isfinite, p[i][j] + p[j][i])):
        return False
    labels = [row.index(max(row)) for row in (p[i][j], p[j][i])]
    return labels == [2, 2] if relation == "strict" else 0 not in labels and labels != [1, 1]


def slow(p, mask, relation, assignment, threshold):
    """Cluster numbers of one group."""
    kept = [i for i, m in enumerate(mask) if m]
    related = {(i, j): relate(p, i, j, relation, threshold) for i in kept for j in kept}
    ids = [-1] * len(p)
    if assignment == "components":
        for i in kept:  # the smallest number spreads until nothing changes
            ids[i] = i
        for _ in kept:
            for i, j in related:
                if i != j and related[i, j]:
                    ids[i] = ids[j] = min(ids[i], ids[j])
        numbers = sorted({ids[i] for i in kept})
        return [numbers.index(k) if k >= 0 else -1 for k in ids]
    first = []
    if assignment == "last":
        for i in kept:
            if ids[i] == -1:
                ids[i] = len(first)
                for j in kept:
                    if j > i and related[i, j]:
                        ids[j] = len(first)
                first.append(i)
        return ids
    for j in kept:
        found = [k for k, i in enumerate(first) if related[i, j]]
        if assignment == "best" and relation == "one_way":
            found.sort(key=lambda k: -p[first[k]][j][2])  # stable: the first of equal ones
        ids[j] = found[0] if found else len(first)
        if not found:
            first.append(j)
    return ids


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(0, 2**31), st.sampled_from([0.0, 0.35, 0.6, 1.0]))
def test_every_rule_is_its_loop_and_masked_is_dropped(size, seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(0, 11, (4, size, size, 3), generator=generator).double()  # ties are frequent
    p = p / p.sum(-1, keepdim=True)  # 0/0: not finite
    where = torch.rand(4, size, generator=generator) > 0.2
    for rule in itertools.product(RELATIONS, ASSIGNMENTS):
        ids = entailment_clusters(p, rule, where, threshold=threshold)
        assert ids.dtype == torch.int64
        assert ids.tolist() == [slow(a.tolist(), w.tolist(), *rule, threshold) for a, w in zip(p, where, strict=True)]
        if where[0].any():
            keep = where[0]
            alone = entailment_clusters(p[:1, keep][:, :, keep], rule, threshold=threshold)
            assert alone[0].tolist() == ids[0][keep].tolist()


def test_names_are_pairs_of_relation_and_assignment():
    p = torch.rand(20, 6, 6, 3, generator=torch.Generator().manual_seed(0))
    p = (p**3) / (p**3).sum(-1, keepdim=True)
    results = [entailment_clusters(p, rule) for rule in RULES]
    assert [ids.tolist() for ids in results] == [entailment_clusters(p, RULES[rule]).tolist() for rule in RULES]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(results, 2))
    assert torch.equal(entailment_clusters(p, threshold=0.5), greedy_clusters(p[..., 2], threshold=0.5))


def test_strict_needs_both_directions():
    assert entailment_clusters(labelled(2, p01=E), "strict").tolist() == [[0, 1]]
    assert entailment_clusters(labelled(2, p10=E), "strict").tolist() == [[0, 1]]
    assert entailment_clusters(labelled(2, p01=E, p10=E), "strict").tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("there", "back", "together"),
    [(E, E, 1), (E, N, 1), (N, E, 1), (N, N, 0), (E, C, 0), (C, E, 0), (C, N, 0), (N, C, 0), (C, C, 0)],
)
def test_lenient_is_no_contradiction_and_not_both_neutral(there, back, together):
    assert entailment_clusters(labelled(2, p01=there, p10=back), "lenient").tolist() == [[0, 1 - together]]


def test_the_largest_probability_need_not_be_large():
    weak = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    assert entailment_clusters(labelled(2, p01=weak, p10=weak), "strict").tolist() == [[0, 0]]
    assert entailment_clusters(labelled(2, p01=weak, p10=weak), threshold=0.5).tolist() == [[0, 1]]


@pytest.mark.parametrize(("tie", "lenient"), [((0.5, 0, 0.5), 1), ((0, 0.5, 0.5), 0), ((0.5, 0.5, 0), 1)])
def test_of_equal_probabilities_the_more_careful_label(tie, lenient):
    tied = torch.tensor(tie, dtype=torch.float64)
    assert entailment_clusters(labelled(2, p01=tied, p10=E), "strict").tolist() == [[0, 1]]
    assert entailment_clusters(labelled(2, p01=tied, p10=E), "lenient").tolist() == [[0, lenient]]


def test_first_match_and_last_seed_differ_by_what_goes_with_both():
    # 2 goes with 0 and with 1, which do not go together
    p = labelled(3, p02=E, p20=E, p12=E, p21=E)
    assert entailment_clusters(p, "strict").tolist() == [[0, 1, 0]]
    assert entailment_clusters(p, "strict_last").tolist() == [[0, 1, 1]]
    assert entailment_clusters(p, "components").tolist() == [[0, 0, 0]]


def test_a_later_seed_takes_no_earlier_answer():
    # 0 takes 1; 2 opens and would take 1, which came before it
    p = labelled(3, p01=E, p10=E, p12=E, p21=E)
    assert entailment_clusters(p, "strict_last").tolist() == [[0, 0, 1]]


def test_components_go_over_any_number_of_others():
    size = 9
    chain = labelled(size, **{f"p{i}{i + 1}": E for i in range(8)}, **{f"p{i + 1}{i}": E for i in range(8)})
    assert entailment_clusters(chain, "components").tolist() == [[0] * size]
    assert entailment_clusters(chain, "strict").tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4]]
    where = torch.arange(size)[None] != 4
    assert entailment_clusters(chain, "components", where).tolist() == [[0, 0, 0, 0, -1, 1, 1, 1, 1]]
    one_way = labelled(3, p10=E, p12=E)
    assert entailment_clusters(one_way, ("one_way", "components")).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_what_is_not_finite_is_alone_under_every_rule(value):
    p = labelled(3, E)
    p[:, 1], p[:, :, 1] = value, value
    for rule in itertools.product(RELATIONS, ASSIGNMENTS):
        assert entailment_clusters(p, rule, threshold=0.0).tolist() == [[0, 1, 0]]
    assert greedy_clusters(p[..., 2], threshold=0.0).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("value", [NAN, math.inf])
@pytest.mark.parametrize("label", range(3))
def test_one_probability_that_is_not_finite_is_enough(value, label):
    p = labelled(2, E)
    p[0, 0, 1, label] = value
    for rule in RULES:
        assert entailment_clusters(p, rule).tolist() == [[0, int(rule != "greedy" or label == 2)]]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_equal_answers_need_not_be_asked_for(relation, assignment):
    """Keys spare questions and change nothing where equal answers entail each other and treat others alike."""
    generator = torch.Generator().manual_seed(5)
    keys = torch.randint(0, 5, (50, 8), generator=generator)
    kinds = torch.rand(50, 5, 5, 3, generator=generator) ** 3
    kinds = kinds / kinds.sum(-1, keepdim=True)
    kinds[:, range(5), range(5)] = E.float()
    group = torch.arange(50)[:, None, None]
    p = kinds[group, keys[:, :, None], keys[:, None, :]]
    asked = {"with": 0, "without": 0}

    def ask(n, i, j, who):
        asked[who] += len(n)
        return p[n, i, j]

    where = torch.rand(50, 8, generator=generator) > 0.1
    rule = (relation, assignment)
    plain = clusters_by(lambda *at: ask(*at, "without"), where, rule)
    assert torch.equal(clusters_by(lambda *at: ask(*at, "with"), where, rule, keys=keys), plain)
    assert torch.equal(plain, entailment_clusters(p, rule, where))
    assert (asked["with"] < 0.9 * asked["without"]) == (assignment in ("best", "first"))


def test_only_what_is_needed_is_asked_for():
    seen = []

    def ask(n, i, j):
        seen.extend(zip(n.tolist(), i.tolist(), j.tolist(), strict=True))
        return p[n, i, j]

    # 1 joins 0; 2 opens; 3 is compared with 0 and 2; the reverse is asked where the one direction entails
    p = labelled(4, p01=E, p10=E, p23=E, p32=N)
    assert clusters_by(ask, torch.ones(1, 4, dtype=torch.bool), "strict").tolist() == [[0, 0, 1, 2]]
    assert seen == [(0, *pair) for pair in [(0, 1), (1, 0), (0, 2), (0, 3), (2, 3), (3, 2)]]
    seen.clear()
    assert clusters_by(ask, torch.ones(1, 4, dtype=torch.bool), "greedy").tolist() == [[0, 0, 1, 1]]
    assert seen == [(0, *pair) for pair in [(0, 1), (0, 2), (0, 3), (2, 3)]]


def test_no_groups_of_entailment():
    for rule in itertools.product(RELATIONS, ASSIGNMENTS):
        assert entailment_clusters(torch.zeros(0, 4, 4, 3), rule).shape == (0, 4)
        assert entailment_clusters(torch.zeros(2, 1, 1, 3), rule).tolist() == [[0], [0]]


def test_rules_and_shapes_that_are_none():
    p = torch.zeros(1, 2, 2, 3)
    for rule in ("greed", ("strict", "greedy"), ("greedy", "first"), ("strict",), 3 * ("best",)):
        with pytest.raises(CalibrantError, match="rule"):
            entailment_clusters(p, rule)
    with pytest.raises(CalibrantError, match="did you mean 'lenient'"):
        entailment_clusters(p, "lenjent")
    with pytest.raises(CalibrantError, match=r"contradiction, neutral, entailment.*\[1, 2, 2, 2\]"):
        entailment_clusters(p[..., :2])
    with pytest.raises(CalibrantError, match=r"\[N, G, G, L\]"):
        entailment_clusters(p[..., 0])
    with pytest.raises(CalibrantError, match="where"):
        entailment_clusters(p, "strict", torch.ones(1, 2))
    for threshold in (-0.1, 1.5, NAN, None):
        with pytest.raises(CalibrantError, match="threshold"):
            entailment_clusters(p, threshold=threshold)
