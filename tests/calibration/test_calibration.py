import itertools
import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from calibrant.calibration import (
    best_of_n,
    bootstrap_interval,
    brier,
    confidence_weighted_vote,
    correctness_auc,
    expected_calibration_error,
    majority_vote,
    maximum_calibration_error,
    pass_at_k,
    perplexity_consistency,
    precision_coverage,
    precision_coverage_areas,
    reliability_curve,
    risk_coverage,
    vote_accuracy,
)
from calibrant.errors import CalibrantError

NAN, INF = math.nan, math.inf
WITH_WEIGHTS = {
    "auc": correctness_auc,
    "auc_per_prompt": partial(correctness_auc, pooling="per_prompt"),
    "ece": expected_calibration_error,
    "mce": partial(maximum_calibration_error, bins=4),
    "brier": brier,
    "area": lambda *a, **k: precision_coverage_areas(*a, **k).area,
    "oracle": lambda *a, **k: precision_coverage_areas(*a, **k).oracle_area,
    "random": lambda *a, **k: precision_coverage_areas(*a, **k).random_area,
    "pass": lambda p, y, where=None, **k: pass_at_k(y, 2, where, **k),
    "vote": lambda p, y, where=None, **k: vote_accuracy(best_of_n(p, where).credit, y, **k),
}


def answers(n=40, g=6, seed=0, ties=False, dtype=torch.float64):
    """Probabilities, correctness with some unknown, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(n, g, generator=generator, dtype=torch.float64)
    correct = (torch.rand(n, g, generator=generator) < 0.2 + 0.6 * p).double()
    if ties:
        p = (p * 5).round() / 5
    p[torch.rand(n, g, generator=generator) < 0.1] = NAN
    correct[torch.rand(n, g, generator=generator) < 0.1] = NAN
    return p.to(dtype), correct, torch.rand(n, g, generator=generator) < 0.8


def kept(p, correct, where):
    """The answers that count, as two lists."""
    mask = where & ~p.isnan() & ~correct.isnan()
    return p[mask].tolist(), correct[mask].tolist()


def pair_auc(p, y):
    pairs = [(a, b) for a, s in zip(p, y, strict=True) if s for b, t in zip(p, y, strict=True) if not t]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs) if pairs else None


# ---- ranking


@pytest.mark.parametrize("ties", [False, True])
def test_pooled_auc_is_the_pairs_and_scikit_learns(ties):
    for seed in range(5):
        p, correct, where = answers(seed=seed, ties=ties)
        flat = kept(p, correct, where)
        found = correctness_auc(p, correct, where).item()
        assert found == pair_auc(*flat)  # to the bit: whole and half pairs over whole pairs
        assert found == pytest.approx(roc_auc_score(flat[1], flat[0]), abs=1e-14)


def test_per_prompt_auc_is_the_mean_over_prompts_that_have_both():
    for seed in range(5):
        p, correct, where = answers(seed=seed, ties=seed % 2 == 0)
        areas = [pair_auc(*kept(p[n], correct[n], where[n])) for n in range(len(p))]
        areas = [a for a in areas if a is not None]
        assert 5 < len(areas) < 40
        found = correctness_auc(p, correct, where, pooling="per_prompt").item()
        assert found == pytest.approx(math.fsum(areas) / len(areas), abs=1e-14)


def test_auc_by_hand():
    # CAPO's vector: right -.5 and -.2, wrong -.9 and -.1: 2 of 4 pairs are won; then one of them is a tie
    lpm, right = torch.tensor([[-0.5, -0.2, -0.9, -0.1]]), torch.tensor([[1, 1, 0, 0]])
    assert correctness_auc(lpm, right) == 0.5
    assert correctness_auc(torch.tensor([[-0.5, -0.1, -0.9, -0.1]]), right) == (2 + 0.5) / 4
    # pooled: .9 > .5, .9 > .1, .2 > .1 of 4 pairs; per prompt: 1 and 1
    p, y = torch.tensor([[0.9, 0.5], [0.2, 0.1]]), torch.tensor([[True, False], [True, False]])
    assert correctness_auc(p, y) == 0.75 and correctness_auc(p, y, pooling="per_prompt") == 1.0


@pytest.mark.parametrize("pooling", ["pooled", "per_prompt"])
def test_perfect_inverted_constant_and_monotone(pooling):
    auc = partial(correctness_auc, pooling=pooling)
    p, correct, where = answers(ties=True)
    right = correct.nan_to_num(0.0)
    assert auc(right, right) == 1.0 and auc(-right, right) == 0.0 and auc(torch.zeros(40, 6), right) == 0.5
    assert auc(-p, correct, where).item() == pytest.approx(1 - auc(p, correct, where).item(), abs=1e-14)
    assert auc(p.exp() * 1e300, correct, where) == auc(p, correct, where)
    assert auc(p, 1 - correct, where).item() == pytest.approx(1 - auc(p, correct, where).item(), abs=1e-14)


def test_infinite_confidences_are_first_and_last_and_zeros_have_no_sign():
    p = torch.tensor([[INF, 1.0, -INF, 0.0, -0.0]])
    assert correctness_auc(p, torch.tensor([[1, 0, 0, NAN, NAN]])) == 1.0
    assert correctness_auc(p, torch.tensor([[0, NAN, 1, NAN, NAN]])) == 0.0
    assert correctness_auc(p, torch.tensor([[NAN, NAN, NAN, 1, 0]])) == 0.5
    assert correctness_auc(torch.tensor([[INF, INF]]), torch.tensor([[1, 0]])) == 0.5


def test_auc_without_a_pair_is_what_the_caller_says():
    for p, y in [(torch.rand(3, 2), torch.ones(3, 2)), (torch.rand(0, 4), torch.ones(0, 4)), (torch.rand(4, 1),) * 2]:
        y = (y > 2).long() if len(p) == 4 else y
        for pooling in ("pooled", "per_prompt"):
            assert correctness_auc(p, y, pooling=pooling) == 0.5
            assert correctness_auc(p, y, pooling=pooling, undefined=NAN).isnan()
    # one prompt of a pair drawn, or not
    weights = torch.tensor([[1, 0], [0, 1], [1, 1]])
    p, y = torch.tensor([[0.5], [0.1]]), torch.tensor([[1], [0]])
    found = correctness_auc(p, y, prompt_weights=weights, undefined=-1)
    assert found.tolist() == [-1, -1, 1]


# ---- weights


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@pytest.mark.parametrize("ties", [False, True])
def test_weights_are_repetition(name, ties):
    metric = WITH_WEIGHTS[name]
    p, correct, where = answers(ties=ties)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randint(0, 4, (3, 2, 40), generator=generator)
    found = metric(p, correct, where, prompt_weights=weights)
    assert found.shape == (3, 2) and found.unique().numel() > 1
    for i, j in itertools.product(range(3), range(2)):
        again = (x.repeat_interleave(weights[i, j], 0) for x in (p, correct, where))
        assert found[i, j].item() == pytest.approx(metric(*again).item(), abs=1e-12)
    once = metric(p, correct, where, prompt_weights=torch.ones(40, dtype=torch.int32))
    assert once.item() == pytest.approx(metric(p, correct, where).item(), abs=1e-12)
    assert torch.isfinite(metric(p, correct, where, prompt_weights=torch.zeros(1, 40).long())).all()


def test_weights_many_at_a_time_are_one_at_a_time():
    p, correct, where = answers(n=900, g=4)
    weights = torch.randint(0, 3, (400, 900), generator=torch.Generator().manual_seed(0))
    for metric in WITH_WEIGHTS.values():
        found = metric(p, correct, where, prompt_weights=weights)
        for r in (0, 71, 72, 73, 290, 399):
            alone = metric(p, correct, where, prompt_weights=weights[r])
            assert found[r].item() == pytest.approx(alone.item(), abs=1e-12)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_are_checked(name):
    p, correct, _ = answers()
    for bad, message in [
        (torch.ones(39).long(), r"N = 40 prompts, got \[39\]"),
        (torch.ones(40), "integers of at least 0"),
        (-torch.ones(40).long(), "integers of at least 0"),
    ]:
        with pytest.raises(CalibrantError, match=message):
            WITH_WEIGHTS[name](p, correct, prompt_weights=bad)


# ---- reliability


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_reliability_is_scikit_learns(binning):
    for seed, bins in [(0, 15), (1, 10), (2, 1), (3, 40)]:
        p, correct, where = answers(seed=seed)
        values, labels = kept(p, correct, where)
        strategy = {"equal_width": "uniform", "equal_mass": "quantile"}[binning]
        accuracy, confidence = calibration_curve(labels, values, n_bins=bins, strategy=strategy)
        curve = reliability_curve(p, correct, where, bins=bins, binning=binning)
        assert len(curve.edges) == bins + 1 and curve.counts.sum() == len(values)
        filled = curve.counts > 0
        assert curve.accuracy[filled].tolist() == pytest.approx(accuracy.tolist(), abs=1e-12)
        assert curve.confidence[filled].tolist() == pytest.approx(confidence.tolist(), abs=1e-12)
        gaps = abs(accuracy - confidence)
        expected = (gaps * curve.counts[filled].numpy()).sum() / len(values)
        options = {"bins": bins, "binning": binning}
        assert expected_calibration_error(p, correct, where, **options).item() == pytest.approx(expected, abs=1e-12)
        assert maximum_calibration_error(p, correct, where, **options).item() == pytest.approx(gaps.max(), abs=1e-12)
        assert brier(p, correct, where).item() == pytest.approx(brier_score_loss(labels, values), abs=1e-14)


def test_edges_belong_to_the_bin_below_and_zero_to_the_first():
    p = torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0, 0.2501]], dtype=torch.float64)
    curve = reliability_curve(p, torch.ones(1, 6), bins=4)
    assert curve.counts.tolist() == [2, 2, 1, 1] and curve.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    # three fifths of fifteen ninths: b / B is rounded once
    assert reliability_curve(p[:, :1] + 0.6, torch.ones(1, 1), bins=15).counts.nonzero().item() == 8


def test_equal_mass_has_equal_counts_and_keeps_ties_together():
    p = torch.rand(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert reliability_curve(p, p > 0.5, bins=10, binning="equal_mass").counts.tolist() == [12] * 10
    tied = torch.tensor([[0.3] * 7 + [0.9]])
    curve = reliability_curve(tied, torch.ones(1, 8), bins=4, binning="equal_mass")
    assert sorted(curve.counts.tolist()) == [0, 0, 1, 7]
    # the median of six .1, .2 and .3 is .1: no more than those six are at most that
    curve = reliability_curve(torch.tensor([[0.1] * 6 + [0.2, 0.3]]), torch.ones(1, 8), bins=2, binning="equal_mass")
    assert curve.counts.tolist() == [6, 2]


def test_calibrated_and_overconfident_by_hand():
    # four answers at 0.75 of which three are right; two at 0.5, one right: calibrated
    p, y = torch.tensor([[0.75] * 4 + [0.5] * 2]), torch.tensor([[1, 1, 1, 0, 1, 0]])
    assert expected_calibration_error(p, y) == 0.0 and maximum_calibration_error(p, y) == 0.0
    assert brier(p, y).item() == pytest.approx((3 * 0.0625 + 0.5625 + 2 * 0.25) / 6)
    # always sure, half right
    sure = torch.ones(1, 6), torch.tensor([[1, 0, 1, 0, 1, 0]])
    assert [f(*sure).item() for f in (expected_calibration_error, maximum_calibration_error, brier)] == [0.5] * 3
    # the bins decide: one bin hides that .2 is always right and .8 never
    p, y = torch.tensor([[0.25, 0.75]]), torch.tensor([[1, 0]])
    assert expected_calibration_error(p, y, bins=1) == 0.0 and expected_calibration_error(p, y, bins=2) == 0.75


def test_probabilities_and_bins_are_checked():
    y = torch.ones(1, 2)
    for function in (expected_calibration_error, maximum_calibration_error, brier, reliability_curve):
        for bad in (-0.5, 1.5, INF, -INF):
            with pytest.raises(CalibrantError, match=rf"{function.__name__}: a probability .* got {bad:g}"):
                function(torch.tensor([[0.5, bad]]), y)
            function(torch.tensor([[0.5, bad]]), y, torch.tensor([[True, False]]))  # not asked for
        function(torch.tensor([[0.5, 1 + 1e-7]]), y)
    rounded = torch.tensor([[1 + 5e-7, -5e-7]], dtype=torch.float64)
    assert brier(rounded, torch.tensor([[1, 0]])) == 0 == expected_calibration_error(rounded, torch.tensor([[1, 0]]))
    with pytest.raises(CalibrantError, match="binning has to be one of 'equal_width', 'equal_mass', got 'width'"):
        expected_calibration_error(y, y, binning="width")
    for bins in (0, -1, 2.0, True):
        with pytest.raises(CalibrantError, match="bins has to be an integer of at least 1"):
            maximum_calibration_error(y, y, bins=bins)


# ---- coverage


def expected_precisions(p, y):
    """Mean over all orders that confidence allows, by enumeration."""
    orders = [o for o in itertools.permutations(range(len(p))) if all(p[a] >= p[b] for a, b in itertools.pairwise(o))]
    return [sum(sum(y[i] for i in o[:k]) / k for o in orders) / len(orders) for k in range(1, len(p) + 1)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.7, INF]), st.booleans()), min_size=1, max_size=6))
def test_ties_are_expectations(rows):
    p, y = zip(*rows, strict=True)
    curve = precision_coverage(torch.tensor([p], dtype=torch.float64), torch.tensor([y]))
    expected = expected_precisions(p, y)
    assert curve.precision.tolist() == pytest.approx(expected, abs=1e-12)
    assert curve.coverage.tolist() == pytest.approx([k / len(p) for k in range(1, len(p) + 1)])
    assert curve.area.item() == pytest.approx(sum(expected) / len(p), abs=1e-12)
    assert curve.random_area.item() == pytest.approx(sum(y) / len(p))
    ideal = expected_precisions([float(v) for v in y], y)
    assert curve.oracle_area.item() == pytest.approx(sum(ideal) / len(p), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_curve_is_the_sorted_loop_and_the_area_its_mean(ties):
    p, correct, where = answers(ties=ties)
    values, labels = kept(p, correct, where)
    curve = precision_coverage(p, correct, where)
    assert curve.area.item() == pytest.approx(curve.precision.mean().item(), abs=1e-13)
    if not ties:
        ordered = [y for _, y in sorted(zip(values, labels, strict=True), reverse=True)]
        loop = [sum(ordered[:k]) / k for k in range(1, len(ordered) + 1)]
        assert curve.precision.tolist() == pytest.approx(loop, abs=1e-13)


def test_perfect_random_and_inverted_areas():
    right = torch.arange(1000).reshape(100, 10) < 700
    n, m = 1000, 700
    harmonic = [math.fsum(1 / k for k in range(1, j + 1)) for j in range(n + 1)]
    perfect = precision_coverage(right.double(), right)
    best = (m + m * (harmonic[n] - harmonic[m])) / n
    assert perfect.area.item() == pytest.approx(best, abs=1e-12) == perfect.oracle_area.item()
    assert perfect.area.item() == pytest.approx(0.7 - 0.7 * math.log(0.7), abs=1e-3)
    assert perfect.excess_over_oracle.item() == pytest.approx(0.0, abs=1e-12)
    inverted = precision_coverage(-right.double(), right)
    worst = sum((k - (n - m)) / k for k in range(n - m + 1, n + 1)) / n
    assert inverted.area.item() == pytest.approx(worst, abs=1e-12) and inverted.excess_over_random < 0
    constant = precision_coverage(torch.zeros(100, 10, dtype=torch.float64), right)
    assert (constant.precision - 0.7).abs().max() < 1e-15
    assert constant.area.item() == pytest.approx(0.7, abs=1e-12) == constant.random_area.item()
    assert constant.excess_over_random.item() == pytest.approx(0.0, abs=1e-12)


def test_a_model_that_is_always_right_has_exactly_one():
    for n in (1, 3, 20, 997):
        curve = precision_coverage(torch.rand(n, 1, dtype=torch.float64), torch.ones(n, 1))
        assert curve.area == 1.0 == curve.oracle_area == curve.random_area and (curve.precision == 1).all()
        curve = precision_coverage(torch.rand(n, 1, dtype=torch.float64), torch.zeros(n, 1))
        assert curve.area == 0.0 == curve.oracle_area == curve.random_area and (curve.precision == 0).all()


def test_coverages_round_up():
    p, y = torch.arange(10, 0, -1.0).reshape(2, 5).double(), torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1]])
    # k = 1 (of .01 and of .1), 2 (of .11 and of .2), 3, 7 (0.7 * 10 is 7.000000000000001 in places), 10
    curve = precision_coverage(p, y, coverages=[0.01, 0.1, 0.11, 0.2, 0.3, 0.7, 1.0])
    assert curve.precision.tolist() == pytest.approx([1, 1, 1, 1, 2 / 3, 3 / 7, 4 / 10])
    assert curve.coverage.tolist() == [0.01, 0.1, 0.11, 0.2, 0.3, 0.7, 1.0]
    assert curve.area == precision_coverage(p, y).area
    for n in (10, 30, 70, 300, 980):
        p, y = torch.arange(n)[:, None], torch.rand(n, 1) > 0.5
        every = precision_coverage(p, y, coverages=[k / n for k in range(1, n + 1)])
        assert torch.equal(every.precision, precision_coverage(p, y).precision)
    for bad in ([0.0], [1.1], [0.5, NAN], 0.5):
        with pytest.raises(CalibrantError, match="coverages have to be a list of numbers in"):
            precision_coverage(p, y, coverages=bad)


def test_risk_is_one_minus_precision():
    p, correct, where = answers(ties=True)
    curve, risk = precision_coverage(p, correct, where), risk_coverage(p, correct, where)
    assert torch.equal(risk.risk, 1 - curve.precision) and torch.equal(risk.coverage, curve.coverage)
    assert risk.aurc == 1 - curve.area and risk.oracle_aurc == 1 - curve.oracle_area
    assert risk.excess_aurc.item() == pytest.approx((risk.aurc - risk.oracle_aurc).item()) and risk.excess_aurc > 0
    assert len(risk_coverage(p, correct, where, coverages=[0.5]).risk) == 1


# ---- votes


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
    with pytest.raises(CalibrantError, match="perplexity_consistency: a log-probability is at most 0, got 2"):
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


# ---- intervals


def test_interval_is_the_loop_over_resampled_prompts():
    p, correct, where = answers(n=25)
    for name in ("auc", "area", "pass"):
        metric = WITH_WEIGHTS[name]
        found = bootstrap_interval(
            lambda w, f=metric: f(p, correct, where, prompt_weights=w),
            25,
            resamples=60,
            level=0.9,
            generator=torch.Generator().manual_seed(3),
        )
        rows = torch.randint(0, 25, (60, 25), generator=torch.Generator().manual_seed(3))
        loop = torch.stack([metric(p[r], correct[r], where[r]) for r in rows])
        ends = torch.quantile(loop, torch.tensor([0.05, 0.95], dtype=torch.float64))
        expected = [metric(p, correct, where), *ends, loop.std()]
        assert [x.item() for x in found] == pytest.approx([x.item() for x in expected], abs=1e-12)


def test_interval_of_a_mean_has_the_standard_error_of_the_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bootstrap_interval(values, resamples=4000)
    expected = (values.std(correction=0) / 20).item()
    assert found.value.item() == pytest.approx(values.mean().item(), abs=1e-12)
    assert found.standard_error.item() == pytest.approx(expected, rel=0.05)
    assert (found.high - found.low).item() == pytest.approx(2 * 1.96 * expected, rel=0.05)
    assert found.low < found.value < found.high
    narrow = bootstrap_interval(values, resamples=4000, level=0.5)
    assert (narrow.high - narrow.low).item() == pytest.approx(2 * 0.6745 * expected, rel=0.07)


def test_prompts_are_the_sample():
    # the answers of a prompt are all right or all wrong: 16 of them are worth one
    generator = torch.Generator().manual_seed(0)
    right = (torch.rand(300, 1, generator=generator) < 0.5).expand(300, 16)
    score = torch.ones(300, 16, dtype=torch.float64)

    def accuracy(weights):
        return precision_coverage_areas(score, right, prompt_weights=weights).random_area

    error = bootstrap_interval(accuracy, 300, resamples=1000).standard_error.item()
    assert error == pytest.approx(math.sqrt(0.25 / 300), rel=0.1)  # and not / (300 * 16)


def test_paired_differences_are_narrow():
    p, correct, _ = answers(n=200)
    p = p.nan_to_num(0.5)
    other = p + 0.01 * torch.rand(p.shape, generator=torch.Generator().manual_seed(0))

    def difference(weights):
        first, second = (correctness_auc(x, correct, prompt_weights=weights) for x in (p, other))
        return first - second

    both = bootstrap_interval(difference, 200, resamples=300)
    alone = bootstrap_interval(lambda w: correctness_auc(p, correct, prompt_weights=w), 200, resamples=300)
    assert both.standard_error < 0.2 * alone.standard_error


def test_bootstrap_is_reproducible_and_private():
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    first, second = bootstrap_interval(values, resamples=50), bootstrap_interval(values, resamples=50)
    other = bootstrap_interval(values, resamples=50, generator=torch.Generator().manual_seed(9))
    assert first == second and first.low != other.low and torch.equal(torch.random.get_rng_state(), state)
    assert first.value.dtype == torch.float32


def test_prompts_that_do_not_count_are_not_drawn():
    values = torch.tensor([1.0, NAN, 3.0, INF, 100.0])
    where = torch.tensor([True, True, True, True, False])
    found = bootstrap_interval(values, where=where, resamples=500)
    assert (found.value, found.low, found.high) == (2.0, 1.0, 3.0)
    drawn = []

    def spy(weights):
        drawn.append(weights)
        return (weights.double() @ torch.arange(3.0).double()) / weights.sum(-1)

    found = bootstrap_interval(spy, 3, where=torch.tensor([True, False, True]), resamples=20)
    assert found.value == 1.0 and drawn[0].tolist() == [[1, 0, 1]]
    assert (drawn[1][:, 1] == 0).all() and (drawn[1].sum(-1) == 2).all()


def test_undefined_replicates_are_left_out():
    # three prompts, one of them wrong: a third of the replicates lacks it, and then there is no pair
    p, y = torch.tensor([[0.9], [0.8], [0.1]]), torch.tensor([[1], [1], [0]])

    def auc(weights, undefined):
        return correctness_auc(p, y, prompt_weights=weights, undefined=undefined)

    left_out = bootstrap_interval(lambda w: auc(w, NAN), 3, resamples=200)
    assert (left_out.low, left_out.high, left_out.standard_error) == (1, 1, 0)
    assert bootstrap_interval(lambda w: auc(w, 0.5), 3, resamples=200).low == 0.5
    only_whole = bootstrap_interval(lambda w: torch.where((w == 1).all(-1), 5.0, NAN), 12, resamples=20)
    assert [x.item() for x in only_whole] == [5, 5, 5, 0]
    never = bootstrap_interval(lambda w: torch.full((len(w),), NAN), 3, resamples=10)
    assert [x.item() for x in never] == [0, 0, 0, 0]


def test_bootstrap_is_checked():
    values = torch.rand(3)
    for call, message in [
        (lambda: bootstrap_interval(values, level=95), "level has to be a number between 0 and 1, got 95"),
        (lambda: bootstrap_interval(values, resamples=0), "resamples has to be an integer of at least 1"),
        (lambda: bootstrap_interval(values[:0]), "there is no prompt"),
        (lambda: bootstrap_interval(values * NAN), "there is no prompt"),
        (lambda: bootstrap_interval(lambda w: w), "num_prompts has to be given"),
        (lambda: bootstrap_interval(lambda w: w, 4, where=torch.ones(3).bool()), "3 prompts and num_prompts is 4"),
        (lambda: bootstrap_interval(values[None]), "statistic has 2 axes"),
    ]:
        with pytest.raises(CalibrantError, match=message):
            call()


# ---- everywhere

ALL = {
    **WITH_WEIGHTS,
    "curve": lambda p, y, w=None: precision_coverage(p, y, w).precision,
    "risk": lambda p, y, w=None: risk_coverage(p, y, w, coverages=[0.5, 1]).risk,
    "bins": lambda p, y, w=None: reliability_curve(p, y, w, binning="equal_mass").confidence,
    "majority": lambda p, y, w=None: majority_vote((p.nan_to_num(0) * 3).long(), w, correct=y).support,
    "weighted": lambda p, y, w=None: confidence_weighted_vote((p.nan_to_num(0) * 3).long(), p, w, correct=y).support,
    "perplexity": lambda p, y, w=None: (
        perplexity_consistency((p.nan_to_num(0) * 3).long(), -p, (p.nan_to_num(0) * 9).long(), w, correct=y).support
    ),
    "best": lambda p, y, w=None: best_of_n(p, w, correct=y).accuracy,
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_types(name, dtype):
    p, correct, where = answers(dtype=dtype)
    found = ALL[name](p, correct if name == "pass" else correct.to(dtype), where)
    assert found.dtype == (torch.float32 if name == "majority" else torch.float64 if name == "pass" else dtype)
    exact = ALL[name](p.double(), correct, where)
    torch.testing.assert_close(found.double(), exact.double(), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=30)
@given(st.data())
def test_always_finite_and_in_range(name, data):
    n, g = data.draw(st.integers(0, 4)), data.draw(st.integers(2, 4))
    numbers = st.one_of(st.floats(0, 1), st.sampled_from([NAN, 0.0, 1.0, 0.5]))
    p = torch.tensor(data.draw(st.lists(numbers, min_size=n * g, max_size=n * g)), dtype=torch.float64).reshape(n, g)
    labels = st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=n * g, max_size=n * g)
    correct = torch.tensor(data.draw(labels), dtype=torch.float64).reshape(n, g)
    flags = st.lists(st.booleans(), min_size=n * g, max_size=n * g)
    where = torch.tensor(data.draw(flags), dtype=torch.bool).reshape(n, g)
    found = ALL[name](p, correct, where)
    assert torch.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()
    hidden = torch.where(where, p, torch.tensor(0.123, dtype=torch.float64))  # masked is dropped
    assert torch.equal(ALL[name](hidden, correct, where), found)


@pytest.mark.parametrize("name", ALL)
def test_order_of_prompts_does_not_matter(name):
    p, correct, where = answers(ties=True)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    found, again = ALL[name](p, correct, where), ALL[name](p[order], correct[order], where[order])
    again = again.new_zeros(40).scatter(0, order, again) if found.shape == (40,) else again
    torch.testing.assert_close(found, again, rtol=1e-12, atol=1e-12)


def test_correctness_is_not_a_reward():
    p = torch.rand(2, 3)
    for name in ALL:
        with pytest.raises(CalibrantError, match=r"correct has to be 0 or 1 .* got 0.7"):
            ALL[name](p, torch.full((2, 3), 0.7))


def test_shapes_are_checked():
    p, y = torch.rand(2, 3), torch.ones(2, 3)
    for name in set(ALL) - {"pass", "majority", "weighted", "perplexity", "bins"}:
        with pytest.raises(CalibrantError, match="G is 3 in"):
            ALL[name](p, torch.ones(2, 4))
        with pytest.raises(CalibrantError, match="has 3 axes"):
            ALL[name](p[None], y[None])
    for name in ALL:
        with pytest.raises(CalibrantError, match="where has to be a boolean mask"):
            ALL[name](p, y, torch.ones(2, 3))
    with pytest.raises(CalibrantError, match="clusters have to be integers"):
        majority_vote(p)
    with pytest.raises(CalibrantError, match="perplexity_consistency, text_ids"):
        perplexity_consistency(y.long(), -p, p)
    with pytest.raises(CalibrantError, match="text_ids"):
        perplexity_consistency(y.long(), -p, torch.ones(2, 4).long())
    with pytest.raises(CalibrantError, match="pooling has to be one of 'pooled', 'per_prompt', got 'mean'"):
        correctness_auc(p, y, pooling="mean")


def test_nothing_is_differentiated_and_nothing_is_warned_of():
    p, correct, where = answers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in ALL.values():
            assert not function(p.clone().requires_grad_(), correct, where).requires_grad
