"""Votes, best-of-n and pass@k."""

import itertools
import math

import pytest
import torch

from calibrant.calibration import (
    best_of_n,
    confidence_weighted_vote,
    majority_vote,
    pass_at_k,
    perplexity_consistency,
    vote_accuracy,
)
from calibrant.errors import CalibrantError

NAN, INF = math.nan, math.inf


def slow_vote(clusters, weights, mask):
    """Credit of each rollout, by dictionary."""
    totals = {}
    for c, w, m in zip(clusters, weights, mask, strict=True):
        if m:
            totals[c] = totals.get(c, 0.0) + w
    best = [c for c in totals if totals[c] >= max(totals.values()) - 1e-12]
    first = {c: next(i for i in range(len(mask)) if mask[i] and clusters[i] == c) for c in best}
    return [1 / len(best) if i in first.values() else 0.0 for i in range(len(mask))], totals


def groups_of_votes(n=60, g=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.randint(-1, 3, (n, g), generator=generator)
    texts = clusters * 10 + torch.randint(0, 2, (n, g), generator=generator)
    logprob = -2 * torch.rand(n, g, generator=generator, dtype=torch.float64)
    where = torch.rand(n, g, generator=generator) < 0.8
    where[0] = False
    return clusters, texts, logprob, where


def test_votes_are_the_dictionary():
    clusters, texts, logprob, where = groups_of_votes()
    right, p = (clusters == 0).double(), logprob.exp()

    def unless_a_copy(n, i):
        return 0.0 if any(where[n, j] and texts[n, j] == texts[n, i] for j in range(i)) else p[n, i].item()

    for vote, weight in [
        (majority_vote(clusters, where, correct=right), lambda n, i: 1.0),
        (confidence_weighted_vote(clusters, p, where, correct=right), lambda n, i: p[n, i].item()),
        (perplexity_consistency(clusters, logprob, texts, where, correct=right), unless_a_copy),
    ]:
        scores = []
        for n in range(60):
            weights = [weight(n, i) for i in range(7)]
            credit, totals = slow_vote(clusters[n].tolist(), weights, where[n].tolist())
            assert vote.credit[n].tolist() == pytest.approx(credit)
            if totals:
                assert vote.representative[n] == credit.index(max(credit)) and vote.tie_share[n] == max(credit)
                assert vote.support[n].item() == pytest.approx(max(totals.values()) / sum(totals.values()))
                scores.append(sum(c * r for c, r in zip(credit, right[n].tolist(), strict=True)))
            else:
                assert (vote.representative[n], vote.tie_share[n], vote.support[n]) == (-1, 0, 0)
        assert vote.accuracy.item() == pytest.approx(sum(scores) / len(scores)) and len(scores) < 60


def test_votes_by_hand():
    # clusters 5 5 | 9 9 | 7, two tie; 5 is right: half a point
    clusters, right = torch.tensor([[5, 9, 5, 9, 7]]), torch.tensor([[1, 0, 1, 0, 0]])
    vote = majority_vote(clusters, correct=right)
    assert vote.credit.tolist() == [[0.5, 0.5, 0, 0, 0]] and vote.accuracy == 0.5
    assert (vote.representative, vote.tie_share, vote.support) == (0, 0.5, pytest.approx(0.4))
    # weights .1 + .3 against .35 and .5: the single 7 wins
    confidence = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.5]])
    vote = confidence_weighted_vote(clusters, confidence, correct=right)
    assert vote.representative == 4 and vote.support.item() == pytest.approx(0.5 / 1.25) and vote.accuracy == 0
    # 0.1 + 0.2 and 0.3 are a tie, whatever rounding says
    vote = confidence_weighted_vote(torch.tensor([[0, 0, 1]]), torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64))
    assert vote.credit.tolist() == [[0.5, 0.0, 0.5]]
    # nor are three numbers in another order
    numbers = torch.rand(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = torch.cat([numbers, numbers.flip(-1)], -1)
    vote = confidence_weighted_vote(torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(300, 6), both)
    assert (vote.tie_share == 0.5).all()


def test_perplexity_consistency_counts_copies_once():
    # three copies of one completion of probability .4, and two different ones of .3 and .2 for the other answer
    clusters, texts = torch.tensor([[0, 0, 0, 1, 1]]), torch.tensor([[3, 3, 3, 4, 5]])
    logprob = torch.tensor([[0.4, 0.4, 0.4, 0.3, 0.2]], dtype=torch.float64).log()
    assert majority_vote(clusters).representative == 0
    assert confidence_weighted_vote(clusters, logprob.exp()).representative == 0
    vote = perplexity_consistency(clusters, logprob, texts)
    assert vote.representative == 3 and vote.support.item() == pytest.approx(0.5 / 0.9)
    # all different: the weighted vote
    different = perplexity_consistency(clusters, logprob, torch.arange(5)[None])
    assert different.representative == 0 and different.support.item() == pytest.approx(1.2 / 1.7)
    # a copy that does not count does not hide the one that does
    where = torch.tensor([[False, True, True, True, False]])
    assert perplexity_consistency(clusters, logprob, texts, where).credit.tolist() == [[0, 1, 0, 0, 0]]
    logprob[0, 0] = NAN
    assert perplexity_consistency(clusters, logprob, texts).support.item() == pytest.approx(0.5 / 0.9)


def test_perplexity_consistency_of_long_and_impossible_completions():
    clusters, texts = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 2]])
    vote = perplexity_consistency(clusters, torch.tensor([[-1000.0, -1000.5, -1000.5]]), texts)
    assert vote.representative == 1
    assert vote.support.item() == pytest.approx(2 * math.exp(-0.5) / (1 + 2 * math.exp(-0.5)))
    vote = perplexity_consistency(clusters, torch.full((1, 3), -INF), texts)
    assert vote.credit.tolist() == [[0.5, 0.5, 0.0]] and vote.support == 0
    with pytest.raises(CalibrantError, match="perplexity_consistency: mean_logprob has to be at most 0, got 2; give"):
        perplexity_consistency(clusters, torch.tensor([[-1.0, 2.0, -1.0]]), texts)


def test_unknown_correctness_takes_a_prompt_out():
    clusters = torch.tensor([[0, 0, 1], [0, 0, 1], [0, 1, 2], [2, 2, 2]])
    right = torch.tensor([[1, NAN, 0], [NAN, 1, 0], [1, 0, NAN], [0, 0, NAN]])
    # known; representative unknown; one of three tied unknown; known
    assert majority_vote(clusters, correct=right).accuracy == 0.5
    assert vote_accuracy(torch.tensor([[1.0, 0.0]]), torch.tensor([[NAN, 1.0]])) == 0.0
    credit, right = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.0, 1.0]]), torch.tensor([[1, 0], [1, 1], [1, 1]])
    assert vote_accuracy(credit, right) == 0.75
    assert vote_accuracy(credit, right, torch.tensor([[True, True], [True, True], [True, False]])) == 0.5


def test_fewer_samples_are_the_first_or_a_random_subset():
    clusters, texts, logprob, where = groups_of_votes(n=400)
    votes = {
        "majority": lambda w, **k: majority_vote(clusters, w, **k),
        "weighted": lambda w, **k: confidence_weighted_vote(clusters, logprob.exp(), w, **k),
        "perplexity": lambda w, **k: perplexity_consistency(clusters, logprob, texts, w, **k),
    }
    first = where & (where.cumsum(-1) <= 3)
    state = torch.random.get_rng_state()
    for vote in votes.values():
        assert torch.equal(vote(where, num_samples=3).credit, vote(first).credit)
        assert torch.equal(vote(where, num_samples=7).credit, vote(where).credit)
        drawn = [vote(where, num_samples=3, generator=torch.Generator().manual_seed(s)).credit for s in (0, 0, 1)]
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
        assert (drawn[0] > 0)[~where].sum() == 0
        for bad in (0, 8, 2.0, True):
            with pytest.raises(CalibrantError, match="num_samples"):
                vote(where, num_samples=bad)
    assert torch.equal(torch.random.get_rng_state(), state)
    # each that votes for itself alone has some credit: three of each prompt, or all it has
    for generator in (None, torch.Generator().manual_seed(0)):
        credit = majority_vote(torch.arange(7).expand(400, 7), where, num_samples=3, generator=generator).credit
        assert torch.equal((credit > 0).sum(-1), where.sum(-1).clamp(max=3))
    # one sample of a random subset: each rollout that counts is equally likely
    alone = majority_vote(clusters[1:2].expand(20000, 7), where[1:2].expand(20000, 7), num_samples=1,
                          generator=torch.Generator().manual_seed(0)).credit  # fmt: skip
    assert alone.mean(0).tolist() == pytest.approx((where[1] / where[1].sum()).tolist(), abs=0.02)


def test_best_of_n_is_the_mean_over_all_subsets():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.randint(0, 4, (20, 6), generator=generator).double()
    right = torch.rand(20, 6, generator=generator) < 0.5
    where = torch.rand(20, 6, generator=generator) < 0.9
    confidence[3, 2] = NAN
    for m in range(1, 7):
        vote = best_of_n(confidence, where, correct=right, num_samples=m)
        scores = []
        for n in range(20):
            rows = [i for i in range(6) if where[n, i] and not confidence[n, i].isnan()]
            credit = [0.0] * 6
            subsets = list(itertools.combinations(rows, min(m, len(rows))))
            for subset in subsets:
                top = [i for i in subset if confidence[n, i] == max(confidence[n, list(subset)])]
                for i in top:
                    credit[i] += 1 / len(top) / len(subsets)
            assert vote.credit[n].tolist() == pytest.approx(credit, abs=1e-12)
            assert vote.representative[n] == max(rows, key=lambda i: (round(credit[i], 9), -i))
            assert vote.support[n] == confidence[n, rows].max()
            scores.append(sum(c for c, r in zip(credit, right[n].tolist(), strict=True) if r))
        assert vote.accuracy.item() == pytest.approx(sum(scores) / 20)
    assert best_of_n(confidence, where, num_samples=6).credit.equal(best_of_n(confidence, where).credit)
    assert best_of_n(torch.tensor([[-INF, INF, 1.0]])).representative == 1
    assert best_of_n(torch.full((1, 2), NAN)).representative == -1
    assert best_of_n(confidence).accuracy is None
    with pytest.raises(CalibrantError, match="num_samples is 7 and there are 6 samples"):
        best_of_n(confidence, num_samples=7)


def test_pass_at_k_is_all_subsets():
    generator = torch.Generator().manual_seed(0)
    correct = (torch.rand(30, 6, generator=generator) < 0.3).double()
    correct[torch.rand(30, 6, generator=generator) < 0.2] = NAN
    for k in range(1, 7):
        scores = []
        for row in correct.tolist():
            known = [y for y in row if not math.isnan(y)]
            if len(known) >= k:
                subsets = list(itertools.combinations(known, k))
                scores.append(sum(max(s) for s in subsets) / len(subsets))
        assert pass_at_k(correct, k).item() == pytest.approx(sum(scores) / max(1, len(scores)), abs=1e-12)
    assert pass_at_k(torch.ones(2, 300), 300) == 1.0 and pass_at_k(torch.zeros(2, 300), 300) == 0.0
    # 1 of 200 right: 1 - C(199, 100)/C(200, 100) = 1/2, where factorials are beyond float64
    assert pass_at_k((torch.arange(200) == 5)[None], 100).item() == pytest.approx(0.5, abs=1e-6)
    for bad in (0, 7, 1.5):
        with pytest.raises(CalibrantError, match="pass_at_k: k "):
            pass_at_k(correct, bad)


def test_confidences_that_are_added_up_are_checked():
    clusters = torch.tensor([[0, 1]])
    for bad in (-0.1, INF):
        with pytest.raises(CalibrantError, match="finite and at least 0; exp"):
            confidence_weighted_vote(clusters, torch.tensor([[0.5, bad]]))
        confidence_weighted_vote(clusters, torch.tensor([[0.5, bad]]), torch.tensor([[True, False]]))
    assert confidence_weighted_vote(clusters, torch.tensor([[NAN, 0.0]])).credit.tolist() == [[0.0, 1.0]]
    assert confidence_weighted_vote(clusters, torch.zeros(1, 2)).credit.tolist() == [[0.5, 0.5]]
    huge = confidence_weighted_vote(clusters, torch.tensor([[1e308, 1.7e308]], dtype=torch.float64))
    assert huge.representative == 1 and huge.support.item() == pytest.approx(1.7 / 2.7)
