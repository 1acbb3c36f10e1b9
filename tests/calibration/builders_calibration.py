"""Random answers with gaps, and the metrics that take weights of prompts."""

import math
from functools import partial

import torch

from calibrant.calibration import (
    best_of_n,
    brier,
    correctness_auc,
    expected_calibration_error,
    maximum_calibration_error,
    pass_at_k,
    precision_coverage_areas,
    vote_accuracy,
)

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
