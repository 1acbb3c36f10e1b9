"""The area under the ROC curve of correctness."""

import math
from functools import partial

import pytest
import torch
from builders_calibration import answers, kept
from sklearn.metrics import roc_auc_score

from calibrant.calibration import (
    correctness_auc,
)

NAN, INF = math.nan, math.inf


def pair_auc(p, y):
    pairs = [(a, b) for a, s in zip(p, y, strict=True) if s for b, t in zip(p, y, strict=True) if not t]
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs) if pairs else None


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
