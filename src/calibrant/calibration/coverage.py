"""Selective answering: precision against coverage, the areas under the curve, and risk against coverage.

At coverage c the `k = ceil(c n)` answers of highest confidence are kept. Where a tie straddles the border, its members
are kept with equal probability and the expectation is taken: the order in which equal confidences were stored changes
nothing, and a constant confidence has the precision of chance. The area is the mean of the precision over all n
coverages k/n, so a model that is always right has 1, and no order does better than the oracle's, all right answers
first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from calibrant.calibration.answers import Answers, by_confidence, flat_answers, over_weights
from calibrant.errors import CalibrantError
from calibrant.groups import like_input
from calibrant.statistics.counted import size_of_share
from calibrant.statistics.ranks import take, tie_blocks


class PrecisionCoverage(NamedTuple):
    """Precision against coverage, C points, and areas under that curve, each `[]`."""

    coverage: Tensor  # [C] in (0, 1], ascending
    precision: Tensor  # [C], share of right answers among those kept
    area: Tensor  # mean precision over all coverages
    oracle_area: Tensor  # of the best order of these answers
    random_area: Tensor  # of a random order, in expectation: the accuracy

    @property
    def excess_over_oracle(self) -> Tensor:
        """`oracle_area - area`, at least 0: what a better order could still gain."""
        return self.oracle_area - self.area

    @property
    def excess_over_random(self) -> Tensor:
        """`area - random_area`: what is gained by the confidence; negative if it misleads."""
        return self.area - self.random_area


class CoverageAreas(NamedTuple):
    """Areas under precision against coverage, each `[...]`."""

    area: Tensor
    oracle_area: Tensor
    random_area: Tensor


class RiskCoverage(NamedTuple):
    """Risk (share of wrong answers) against coverage, C points, and areas under that curve, each `[]`."""

    coverage: Tensor  # [C] in (0, 1], ascending
    risk: Tensor  # [C], 1 - precision
    aurc: Tensor  # mean risk over all coverages; smaller is better
    oracle_aurc: Tensor  # of the best order of these answers
    excess_aurc: Tensor  # aurc - oracle_aurc, at least 0


def precision_coverage(
    confidence: Tensor, correct: Tensor, where: Tensor | None = None, *, coverages: Sequence[float] | None = None
) -> PrecisionCoverage:
    """Precision of the most confident answers, at each coverage, and the area under it.

    `precision(c) = (right answers among the ceil(c n) most confident) / ceil(c n)`,
    `area = 1/n sum_k precision(k/n)`, the exact integral over c in (0, 1]. With n answers, m of them right, the oracle
    has `oracle_area = (m + m (H_n - H_m)) / n` with harmonic numbers H; for large n `a - a ln a` with `a = m/n`.

    `coverages`, each in (0, 1], are the points of the curve; None: all n, from 1/n to 1. All results are in [0, 1];
    areas are 0 and the curve is empty (or 0) if nothing counts.

    Reference: the metric of CAPO's figures (c); the treatment of ties and the integral are ours (c).

    >>> curve = precision_coverage(torch.tensor([[0.9, 0.8, 0.4, 0.1]]), torch.tensor([[1, 0, 1, 0]]))
    >>> curve.precision
    tensor([1.0000, 0.5000, 0.6667, 0.5000])
    >>> curve.area, curve.oracle_area, curve.random_area
    (tensor(0.6667), tensor(0.7917), tensor(0.5000))
    """
    answers = by_confidence(flat_answers("precision_coverage", confidence, correct, where), descending=True)
    n = len(answers.prompt)
    sizes = torch.arange(1, n + 1, device=confidence.device).double()
    shares = sizes / max(1, n)
    if coverages is not None:
        shares = _checked_coverages(coverages, confidence.device)
        sizes = size_of_share(1.0, shares * n)
    areas = precision_coverage_areas(confidence, correct, where)
    return PrecisionCoverage(like_input(shares, confidence), like_input(_precision(answers, sizes), confidence), *areas)


def _checked_coverages(coverages: Sequence[float], device: torch.device) -> Tensor:
    shares = torch.as_tensor(coverages, dtype=torch.float64, device=device)
    if shares.ndim != 1 or not bool(((shares > 0) & (shares <= 1)).all()):
        raise CalibrantError(f"precision_coverage: coverages have to be a list of numbers in (0, 1], got {coverages}")
    return shares.sort().values


def _precision(answers: Answers, sizes: Tensor) -> Tensor:
    """Expected share of right answers among the first k of the sorted answers, for each k in sizes; 0 of none."""
    if not len(answers.prompt):
        return torch.zeros_like(sizes)
    first, end = (x[sizes.long() - 1] for x in tie_blocks(answers.confidence))
    right = pad(answers.right.double().cumsum(0), (1, 0))
    return (right[first] + (sizes - first) * (right[end] - right[first]) / (end - first)) / sizes


def precision_coverage_areas(
    confidence: Tensor, correct: Tensor, where: Tensor | None = None, *, prompt_weights: Tensor | None = None
) -> CoverageAreas:
    """The areas of `precision_coverage` without its curve, `[]`, or `[...]` for resampled prompts.

    >>> weights = torch.tensor([[1, 1], [2, 0]])
    >>> precision_coverage_areas(torch.tensor([[0.9], [0.1]]), torch.tensor([[0], [1]]), prompt_weights=weights).area
    tensor([0.2500, 0.0000])
    """
    caller = "precision_coverage_areas"
    answers = by_confidence(flat_answers(caller, confidence, correct, where), descending=True)
    ends = tie_blocks(answers.confidence)[1].unique_consecutive()

    def areas(weights: Tensor) -> Tensor:
        return _areas(take(weights, answers.prompt), answers.right.double(), ends)

    results = over_weights(caller, prompt_weights, confidence, areas, len(answers.prompt))
    return CoverageAreas(*(like_input(x, confidence) for x in results.unbind(-1)))


def _areas(weights: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Area, oracle's and random: `[r, M]` weights of sorted answers -> `[r, 3]`.

    In a block of ties after n_0 answers, m_0 of them right, with share p of right ones, the precision of the first k is
    `p + (m_0 - n_0 p) / k`; its sum over the block takes differences of harmonic numbers.
    """
    count = pad(take(weights.cumsum(-1), ends - 1), (1, 0))
    hits = pad(take((weights * right).cumsum(-1), ends - 1), (1, 0))
    n, m = count[:, -1:], hits[:, -1:]
    inverse = 1 / torch.arange(1, int(n.max()) + 1 if len(n) else 1, dtype=torch.float64, device=weights.device)
    harmonic = pad(inverse.cumsum(0), (1, 0))
    share = hits.diff(dim=-1) / count.diff(dim=-1).clamp(min=1.0)
    excess = (hits[:, :-1] - count[:, :-1] * share) * take(harmonic, count.long()).diff(dim=-1)
    oracle = m + m * (harmonic[n.long()] - harmonic[m.long()])
    return torch.cat([m + excess.sum(-1, keepdim=True), oracle, m], -1) / n.clamp(min=1.0)


def risk_coverage(
    confidence: Tensor, correct: Tensor, where: Tensor | None = None, *, coverages: Sequence[float] | None = None
) -> RiskCoverage:
    """Risk of the most confident answers at each coverage: the complement of `precision_coverage`.

    `risk = 1 - precision`, `AURC = 1 - area`, `E-AURC = AURC - AURC of the oracle`.

    Reference: Geifman, Uziel and El-Yaniv (2019) (c).

    >>> risk_coverage(torch.tensor([[0.9, 0.8, 0.4, 0.1]]), torch.tensor([[1, 0, 1, 0]])).aurc
    tensor(0.3333)
    """
    curve = precision_coverage(confidence, correct, where, coverages=coverages)
    risk, area, oracle = (1 - x for x in (curve.precision, curve.area, curve.oracle_area))
    return RiskCoverage(curve.coverage, risk, area, oracle, curve.excess_over_oracle)
