"""What is left of gradient variance and of gradients where uncertain groups are left out of training."""

import torch
from torch import Tensor

from calibrant.files import JsonObject

LEVELS = 10  # thresholds tau, the quantiles of a signal at 10%, 20% to 100%


def filtering(names: list[str], signals: Tensor, variance: Tensor, squared_norm: Tensor) -> JsonObject | None:
    """For each signal, from `[S, N]` and `[N]`: what the groups with a signal of at most tau have, as tau rises.

    `groups`, and `curves`: signal -> `share` (of the groups, which ties can lift above the quantile), `variance`
    (`E[V | u <= tau] / E[V]`) and `squared_norm` (the same of `|g|^2`), each a list over the `LEVELS`. Leaving out at
    random gives 1; below 1 in both, the filter removes noise and the learning signal with it. Groups with a NaN in a
    signal are left out of its curve. None without groups or without variance.

    Reference: GCPO, equations 5 and 6 (b), which are inequalities for entropy; the curves and ratios are ours (c).
    """
    measured = ~(variance.isnan() | squared_norm.isnan())
    if not bool((variance[measured] > 0).any()) or not bool((squared_norm[measured] > 0).any()):
        return None
    curves = {}
    for name, values in zip(names, signals, strict=True):
        where = measured & ~values.isnan()
        if bool(where.any()) and bool((variance[where] > 0).any()):
            curves[name] = _curve(values[where], variance[where], squared_norm[where])
    return {"groups": int(measured.sum()), "curves": curves}


def _curve(u: Tensor, variance: Tensor, squared_norm: Tensor) -> dict[str, list[float]]:
    ordered = u.sort().values
    ends = [max(0, round(len(u) * (level + 1) / LEVELS) - 1) for level in range(LEVELS)]
    kept = torch.stack([u <= ordered[end] for end in ends]).double()
    counts = kept.sum(1)
    norms = squared_norm.mean()
    return {
        "share": (counts / len(u)).tolist(),
        "variance": (kept @ variance / counts / variance.mean()).tolist(),
        "squared_norm": (kept @ squared_norm / counts / norms).tolist() if norms > 0 else [1.0] * LEVELS,
    }
