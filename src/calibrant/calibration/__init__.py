"""Calibration: whether confidence tells right answers from wrong ones, and what it is good for.

Answers are `[N, G]`: G samples for each of N prompts. The docstrings of functions leave out what holds for all:

* `confidence` `[N, G]` grows with certainty; a `probability` (of being right) is a confidence in [0, 1].
* `correct` `[N, G]` is boolean, or 0 and 1, or NaN where it is not known; a graded reward is refused.
* `where` `[N, G]`, boolean: which answers count. A NaN confidence or correctness is out of every metric.
* `prompt_weights` `[..., N]`, integers: the result, `[...]` instead of `[]`, for data in which each prompt occurs that
  often. So `bootstrap_interval` resamples whole prompts for any metric.
* Votes read `clusters` `[N, G]`, integers, equal for equal answers in a row; with `correct` they give an accuracy.
* Computed in float64, detached, returned in the type of the confidence.
* CalibrantError is raised where shapes or options are not as documented.
* Sources: (a) read in the authors' code, (a*) in code of others, (b) in the paper, (c) an interpretation.
"""

from calibrant.calibration.coverage import (
    CoverageAreas,
    PrecisionCoverage,
    RiskCoverage,
    precision_coverage,
    precision_coverage_areas,
    risk_coverage,
)
from calibrant.calibration.intervals import Interval, bootstrap_interval
from calibrant.calibration.ranking import correctness_auc
from calibrant.calibration.reliability import (
    ReliabilityCurve,
    brier,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_curve,
)
from calibrant.calibration.votes import (
    Vote,
    best_of_n,
    confidence_weighted_vote,
    majority_vote,
    pass_at_k,
    perplexity_consistency,
    vote_accuracy,
)

__all__ = [
    "CoverageAreas", "Interval", "PrecisionCoverage", "ReliabilityCurve", "RiskCoverage", "Vote", "best_of_n",
    "bootstrap_interval", "brier", "confidence_weighted_vote", "correctness_auc", "expected_calibration_error",
    "majority_vote", "maximum_calibration_error", "pass_at_k", "perplexity_consistency", "precision_coverage",
    "precision_coverage_areas", "reliability_curve", "risk_coverage", "vote_accuracy",
]  # fmt: skip
