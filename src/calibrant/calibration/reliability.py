"""Calibration of probabilities: Brier score and binned calibration errors."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.calibration.answers import Answers, counted_answers, flat_answers, over_weights, weighted_mean
from calibrant.checks import check_option
from calibrant.errors import CalibrantError
from calibrant.groups import like_input
from calibrant.statistics.counted import check_count
from calibrant.statistics.resampling import percentiles

BINNINGS = ("equal_width", "equal_mass")
SLACK = 1e-6  # how far rounding may carry a probability out of [0, 1]


class ReliabilityCurve(NamedTuple):
    """Accuracy against confidence in B bins."""

    edges: Tensor  # [B + 1], ascending; bin b holds edges[b] < p <= edges[b + 1], the first one its lower edge as well
    confidence: Tensor  # [B], mean probability in each bin; 0 in an empty one
    accuracy: Tensor  # [B], share of right answers in each bin; 0 in an empty one
    counts: Tensor  # [B], integers


def reliability_curve(
    probability: Tensor, correct: Tensor, where: Tensor | None = None, *, bins: int = 15, binning: str = "equal_width"
) -> ReliabilityCurve:
    """Mean probability and accuracy, bin by bin.

    "equal_width": B bins of width 1/B. "equal_mass": the edges are the quantiles 0, 1/B, ..., 1 of the probabilities
    (linear between neighbours); equal probabilities share a bin, so that with many ties some bins stay empty.

    >>> curve = reliability_curve(torch.tensor([[0.2, 0.4, 0.9, 0.7]]), torch.tensor([[0, 1, 1, 1]]), bins=2)
    >>> curve.confidence, curve.accuracy, curve.counts
    (tensor([0.3000, 0.8000]), tensor([0.5000, 1.0000]), tensor([2, 2]))
    """
    answers = _probabilities("reliability_curve", probability, correct, where)
    edges = _edges("reliability_curve", answers.confidence, bins, binning)
    count, mass, right = _bin_sums(answers._replace(prompt=torch.zeros_like(answers.prompt)), edges, 1)[0]
    filled = count.clamp(min=1.0)
    edges, mass, right = (like_input(x, probability) for x in (edges, mass / filled, right / filled))
    return ReliabilityCurve(edges, mass, right, count.long())


def expected_calibration_error(
    probability: Tensor,
    correct: Tensor,
    where: Tensor | None = None,
    *,
    bins: int = 15,
    binning: str = "equal_width",
    prompt_weights: Tensor | None = None,
) -> Tensor:
    """Mean distance of accuracy and mean probability over bins, weighted by the number of answers per bin.

    `ECE = sum_b n_b/n |acc_b - conf_b|`, in [0, 1]; 0 if nothing counts. The number depends on the bins: it is not
    comparable across binnings. With weights the bins are those of the data without weights.

    Reference: Naeini, Cooper and Hauskrecht (2015) for equal width, Nixon et al. (2019) for equal mass (c).

    >>> expected_calibration_error(torch.tensor([[0.2, 0.4, 0.9, 0.7]]), torch.tensor([[0, 1, 1, 1]]), bins=2)
    tensor(0.2000)
    """
    gap, count = _gaps("expected_calibration_error", probability, correct, where, bins, binning, prompt_weights)
    return like_input(gap.sum(-1) / count.sum(-1).clamp(min=1.0), probability)


def maximum_calibration_error(
    probability: Tensor,
    correct: Tensor,
    where: Tensor | None = None,
    *,
    bins: int = 15,
    binning: str = "equal_width",
    prompt_weights: Tensor | None = None,
) -> Tensor:
    """Largest distance of accuracy and mean probability over the bins that are not empty.

    `MCE = max_b |acc_b - conf_b|`, in [0, 1]; 0 if nothing counts. Small bins are noisy: see the counts.

    Reference: Naeini, Cooper and Hauskrecht (2015) (c).

    >>> maximum_calibration_error(torch.tensor([[0.25, 0.5, 0.875, 0.625]]), torch.tensor([[0, 1, 1, 1]]), bins=4)
    tensor(0.5000)
    """
    gap, count = _gaps("maximum_calibration_error", probability, correct, where, bins, binning, prompt_weights)
    return like_input((gap / count.clamp(min=1.0)).amax(-1), probability)


def brier(
    probability: Tensor, correct: Tensor, where: Tensor | None = None, *, prompt_weights: Tensor | None = None
) -> Tensor:
    """Mean squared distance of probability and outcome, the Brier score.

    `B = 1/n sum_i (p_i - y_i)^2` with `y_i` 1 for a right answer and 0 for a wrong one, in [0, 1]; 0 if nothing counts.

    Reference: Brier (1950) (c).

    >>> brier(torch.tensor([[0.5, 1.0]]), torch.tensor([[1, 1]]))
    tensor(0.1250)
    """
    mask, right = counted_answers("brier", correct, where, probability=probability)
    squares = (_clamped("brier", probability, mask) - right.double()).square()
    mean = partial(weighted_mean, values=squares, mask=mask)
    return like_input(over_weights("brier", prompt_weights, probability, mean), probability)


def _clamped(caller: str, probability: Tensor, mask: Tensor) -> Tensor:
    """Probabilities in float64, 0 where they do not count."""
    values = torch.where(mask, probability.detach().double(), 0.0)
    outside = values[(values < -SLACK) | (values > 1 + SLACK)]
    if outside.numel():
        raise CalibrantError(
            f"{caller}: a probability has to be in [0, 1], got {outside[0].item():g}; exp(mean_logprob) is one, "
            "mean_logprob is not"
        )
    return values.clamp(0.0, 1.0)


def _probabilities(caller: str, probability: Tensor, correct: Tensor, where: Tensor | None) -> Answers:
    mask, _ = counted_answers(caller, correct, where, probability=probability)
    return flat_answers(caller, _clamped(caller, probability, mask), correct, mask)


def _edges(caller: str, values: Tensor, bins: int, binning: str) -> Tensor:
    check_count(caller, bins=bins)
    check_option(caller, BINNINGS, binning=binning)
    shares = tuple(b / bins for b in range(bins + 1))
    if binning == "equal_width" or not len(values):
        return torch.tensor(shares, dtype=torch.float64, device=values.device)
    return percentiles(values, shares)


def _bin_sums(answers: Answers, edges: Tensor, num_prompts: int) -> Tensor:
    """The number of answers per prompt and bin, the sum of their probabilities, the number of right: `[N, 3, B]`."""
    bins = len(edges) - 1
    slots = answers.prompt * bins + torch.bucketize(answers.confidence, edges[1:-1])
    parts = torch.stack([torch.ones_like(answers.confidence), answers.confidence, answers.right.double()])
    sums = parts.new_zeros(3, num_prompts * bins).index_add(1, slots, parts)
    return sums.reshape(3, num_prompts, bins).transpose(0, 1)


def _gaps(
    caller: str,
    probability: Tensor,
    correct: Tensor,
    where: Tensor | None,
    bins: int,
    binning: str,
    prompt_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`n_b |acc_b - conf_b|` and `n_b`, each `[..., B]`."""
    answers = _probabilities(caller, probability, correct, where)
    sums = _bin_sums(answers, _edges(caller, answers.confidence, bins, binning), len(probability))

    def gaps(weights: Tensor) -> Tensor:
        count, mass, right = (weights @ sums.flatten(1)).unflatten(1, (3, bins)).unbind(1)
        return torch.stack([(right - mass).abs(), count], 1)

    results = over_weights(caller, prompt_weights, probability, gaps, 3 * bins)
    return results[..., 0, :], results[..., 1, :]
