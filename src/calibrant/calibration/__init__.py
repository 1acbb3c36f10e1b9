"""Calibration: whether confidence tells right answers from wrong ones, and what it is good for.

Answers are `[N, G]`: G samples for each of N prompts. A confidence grows with certainty; correctness is 0 or 1, and
not a reward. A NaN confidence or a NaN correctness (not known) is out of every metric. Computed in float64, detached,
and returned in the type of the confidence. `bootstrap_interval` gives any of the figures an interval, by prompts.
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
from calibrant.calibration.sampling import pass_at_k
from calibrant.calibration.votes import (
    Vote,
    best_of_n,
    confidence_weighted_vote,
    majority_vote,
    perplexity_consistency,
    vote_accuracy,
)

__all__ = [
    "CoverageAreas",
    "Interval",
    "PrecisionCoverage",
    "ReliabilityCurve",
    "RiskCoverage",
    "Vote",
    "best_of_n",
    "bootstrap_interval",
    "brier",
    "confidence_weighted_vote",
    "correctness_auc",
    "expected_calibration_error",
    "majority_vote",
    "maximum_calibration_error",
    "pass_at_k",
    "perplexity_consistency",
    "precision_coverage",
    "precision_coverage_areas",
    "reliability_curve",
    "risk_coverage",
    "vote_accuracy",
]
