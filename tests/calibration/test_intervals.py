"""Bootstrap intervals over prompts."""

import math

import pytest
import torch
from builders_calibration import WITH_WEIGHTS, answers

from calibrant.calibration import (
    bootstrap_interval,
    correctness_auc,
    precision_coverage_areas,
)
from calibrant.errors import CalibrantError

NAN, INF = math.nan, math.inf


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
