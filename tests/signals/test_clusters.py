"""Greedy clusters, from keys and from entailment."""

import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.signals import barycentric_transport
from calibrant.signals.clusters import greedy_clusters

NAN = math.nan


def pairwise(size, **entries):
    """Probabilities [1, G, G] that are 0 but for `p12=0.9`: answer 1 entails answer 2 with 0.9."""
    p = torch.zeros(1, size, size, dtype=torch.float64)
    for name, value in entries.items():
        p[0, int(name[1]), int(name[2])] = value
    return p


def test_keys_are_numbered_by_first_appearance():
    assert greedy_clusters([["b", "a", "b", "c"], ["x", "x", "x", "x"]]).tolist() == [[0, 1, 0, 2], [0, 0, 0, 0]]


def test_empty_keys_are_alone():
    assert greedy_clusters([["", "a", "", "a"], [None, None, "", "None"]]).tolist() == [[0, 1, 2, 1], [0, 1, 2, 3]]


def test_keys_may_be_anything_hashable():
    assert greedy_clusters([[(1, 2), 3.0, (1, 2), frozenset()]]).tolist() == [[0, 1, 0, 2]]
    assert greedy_clusters([[("empty",), "key", (0, "empty"), ""]]).tolist() == [[0, 1, 2, 3]]


def test_excluded_keys_have_no_cluster():
    where = torch.tensor([[True, False, True, True]])
    assert greedy_clusters([["a", "b", "c", "a"]], where).tolist() == [[0, -1, 1, 0]]
    assert greedy_clusters([["a", "a", "a", "a"]], ~where).tolist() == [[-1, 0, -1, -1]]


def test_the_largest_probability_wins_not_the_first_that_suffices():
    # 2 is entailed by 0 (0.4, enough) and by 1 (0.9)
    assert greedy_clusters(pairwise(3, p02=0.4, p12=0.9)).tolist() == [[0, 1, 1]]


def test_only_the_first_member_speaks_for_a_cluster():
    # 1 joins 0; 2 is entailed by 1 but not by 0, so it opens a cluster
    assert greedy_clusters(pairwise(3, p01=0.9, p12=0.9)).tolist() == [[0, 0, 1]]


def test_one_direction_only():
    # the later answer entails the first one: that does not count
    assert greedy_clusters(pairwise(2, p10=0.9)).tolist() == [[0, 1]]
    assert greedy_clusters(pairwise(2, p01=0.9)).tolist() == [[0, 0]]


def test_order_matters():
    p = pairwise(3, p01=0.9, p12=0.9)
    order = torch.tensor([1, 2, 0])  # now 1 speaks for 2, and 0 stands alone
    assert greedy_clusters(p[:, order][:, :, order]).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_threshold_itself_joins(dtype):
    p = pairwise(2, p01=0.35).to(dtype)
    assert greedy_clusters(p).tolist() == [[0, 0]]
    assert greedy_clusters(torch.nextafter(p, torch.zeros_like(p))).tolist() == [[0, 1]]
    assert greedy_clusters(p, threshold=0.5).tolist() == [[0, 1]]


def test_yes_and_no_are_probabilities():
    p = pairwise(3, p02=1.0)
    assert greedy_clusters(p.bool()).tolist() == greedy_clusters(p.long()).tolist() == [[0, 1, 0]]


def test_ties_go_to_the_lowest_cluster():
    assert greedy_clusters(pairwise(4, p03=0.9, p13=0.9, p23=0.9)).tolist() == [[0, 1, 2, 0]]


def test_the_diagonal_and_nan_join_nothing():
    p = torch.eye(3)[None]
    assert greedy_clusters(p).tolist() == [[0, 1, 2]]
    assert greedy_clusters(torch.full((1, 3, 3), NAN)).tolist() == [[0, 1, 2]]
    assert greedy_clusters(pairwise(3, p02=NAN, p12=0.9)).tolist() == [[0, 1, 1]]
    assert greedy_clusters(torch.zeros(1, 3, 3), threshold=0.0).tolist() == [[0, 0, 0]]


def test_excluded_rollouts_neither_open_nor_join():
    p = torch.ones(1, 4, 4)
    where = torch.tensor([[False, True, False, True]])
    assert greedy_clusters(p, where).tolist() == [[-1, 0, -1, 0]]
    assert greedy_clusters(p, torch.zeros(1, 4, dtype=torch.bool)).tolist() == [[-1] * 4]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(0, 2**31), st.sampled_from([0.0, 0.35, 0.8, 1.0]))
def test_entailment_is_the_loop_and_masked_is_dropped(size, seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randint(0, 21, (6, size, size), generator=generator).double() / 20  # ties are frequent
    where = torch.rand(6, size, generator=generator) > 0.3
    ids = greedy_clusters(p, where, threshold=threshold)
    for n in range(6):
        assert ids[n].tolist() == oracles.greedy_from_entailment(p[n].tolist(), where[n].tolist(), threshold)
        keep = where[n]
        if keep.any():
            alone = greedy_clusters(p[n : n + 1, keep][:, :, keep], threshold=threshold)
            assert alone[0].tolist() == ids[n][keep].tolist()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=5, max_size=5), max_size=4), st.integers(0, 31))
def test_keys_are_the_loop(groups, bits):
    mask = [bool(bits >> i & 1) for i in range(5)]
    where = torch.tensor([mask] * len(groups)).reshape(-1, 5)
    if groups:
        assert greedy_clusters(groups, where).tolist() == [oracles.greedy_from_keys(g, mask) for g in groups]
    assert greedy_clusters(groups).tolist() == [oracles.greedy_from_keys(g, [True] * 5) for g in groups]


def test_keys_and_their_exact_entailment_agree():
    keys = [[str(k) for k in row] for row in torch.randint(0, 3, (20, 8)).tolist()]
    p = torch.tensor([[[float(a == b) for b in row] for a in row] for row in keys])
    assert torch.equal(greedy_clusters(keys), greedy_clusters(p))


def test_downstream_ignores_excluded_rollouts_by_where():
    where = torch.tensor([[True, False, True, False]])
    clusters = greedy_clusters([["a", "b", "c", "d"]], where)
    embeddings = torch.randn(1, 4, 3)
    expected = barycentric_transport(embeddings[:, [0, 2]], torch.tensor([[0, 1]]))
    torch.testing.assert_close(barycentric_transport(embeddings, clusters, where), expected)


def test_no_groups():
    assert greedy_clusters([]).shape == (0, 0)
    assert greedy_clusters(torch.zeros(0, 4, 4)).shape == (0, 4)


@pytest.mark.parametrize("keys", [["paris", "lyon"], "paris", [["a", "b"], ["a"]]])
def test_keys_that_are_not_groups_are_refused(keys):
    with pytest.raises(CalibrantError, match="greedy_clusters"):
        greedy_clusters(keys)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, NAN, None])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(CalibrantError, match="threshold"):
        greedy_clusters(torch.zeros(1, 2, 2), threshold=threshold)


def test_shapes_are_shown():
    with pytest.raises(CalibrantError, match=r"\[N, G, G\].*\[2, 4, 5\]"):
        greedy_clusters(torch.zeros(2, 4, 5))
    with pytest.raises(CalibrantError, match=r"\[2, 4, 4\].*\[2, 3\]"):
        greedy_clusters(torch.zeros(2, 4, 4), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(CalibrantError, match=r"\[1, 2\].*\[1, 3\]"):
        greedy_clusters([["a", "b"]], torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(CalibrantError, match="boolean"):
        greedy_clusters([["a", "b"]], torch.ones(1, 2))
