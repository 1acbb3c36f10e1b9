"""Base advantages of one group."""

import math

from oracles.basics import counted, informative, mean, std


def standardised(rewards, mask, ddof=1, eps=1e-4):
    if not informative(rewards, mask):
        return [0.0] * len(rewards)
    kept = counted(rewards, mask)
    scale = std(kept, ddof) + eps
    return [(r - mean(kept)) / scale if m and math.isfinite(r) else 0.0 for r, m in zip(rewards, mask, strict=True)]


def centred(rewards, mask):
    if not informative(rewards, mask):
        return [0.0] * len(rewards)
    kept = counted(rewards, mask)
    return [r - mean(kept) if m and math.isfinite(r) else 0.0 for r, m in zip(rewards, mask, strict=True)]


def leave_one_out(rewards, mask):
    if not informative(rewards, mask):
        return [0.0] * len(rewards)
    result = []
    for i, r in enumerate(rewards):
        if not mask[i] or not math.isfinite(r):
            result.append(0.0)
            continue
        others = [s for j, s in enumerate(rewards) if j != i and mask[j] and math.isfinite(s)]
        result.append(r - mean(others))
    return result
