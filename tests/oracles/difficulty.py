"""Weights by the success rate of a group, and what is shared out to tokens: loops over lists."""

import math

from oracles.basics import clip, counted, informative, mean, std


def success_rate(rewards, correct, mask, low=0.0, high=2.0):
    rows = [i for i, m in enumerate(mask) if m and math.isfinite(rewards[i])]
    known = [correct[i] for i in rows if math.isfinite(correct[i])] if correct is not None else []
    if known:
        return mean(known)
    return mean([clip((rewards[i] - low) / (high - low), 0, 1) for i in rows]) if rows else 0.0


def entropy_distance(p):
    return sum(q * math.log(q / 0.5) for q in (p, 1 - p) if q > 0)


def mean_deviation_advantages(rewards, mask, eps=1e-4):
    if not informative(rewards, mask):
        return [0.0] * len(mask)
    centre = mean(counted(rewards, mask))
    size = mean([abs(r - centre) for r in counted(rewards, mask)])
    known = [m and math.isfinite(r) for r, m in zip(rewards, mask, strict=True)]
    return [(r - centre) / (size + eps) if k else 0.0 for r, k in zip(rewards, known, strict=True)]


def hadw_scale(reward, group_mean, hist_mean):
    """`compute_ha_dw_outcome_advantage` of yangfengkai/HA-DW @fd20a71, of one rollout."""
    hist_diff = group_mean - hist_mean
    direction = -_sign(hist_diff) * _sign(reward - group_mean)
    return 1.5 * math.exp(direction * abs(hist_diff))


def dqw_weights(rates, spread, temperature=2.0):
    """`difficulty_balancing_weights` of AMAP-ML/MathForge @8b65a62: a softmax over the groups with spread."""
    logits = [-(p if p > 0 else 1.0) / temperature for p in rates]
    total = math.fsum(math.exp(x) for x, s in zip(logits, spread, strict=True) if s)
    valid = sum(spread)
    return [valid * math.exp(x) / total if s else 1.0 for x, s in zip(logits, spread, strict=True)]


def codapo_weight(rate, logprobs, mask, offset=0.1):
    kept = counted(logprobs, mask)
    confidence = math.exp(mean(kept)) if kept else 0.0
    return confidence * (1 - 4 * (rate - 0.5) ** 2) + offset


def _sign(x):
    return (x > 0) - (x < 0)


def gtpo_shares(entropies, right):
    """Per rollout and token: `d_t H / sum H` of right ones, of wrong ones with 1/H; None where there is no token."""
    width = len(entropies[0])
    shares = [[None] * width for _ in entropies]
    for t in range(width):
        for verdict in (0, 1):
            rows = [i for i, h in enumerate(entropies) if right[i] == verdict and math.isfinite(h[t])]
            values = {i: max(entropies[i][t], 1e-8) ** (1 if verdict else -1) for i in rows}
            for i in rows:
                shares[i][t] = len(rows) * values[i] / math.fsum(values.values())
    return shares


def gtpo_advantages(entropies, right, alpha, normalise):
    shares = gtpo_shares(entropies, right)
    rewards = [
        [None if s is None else (1 if r == 1 else -1) * (1 + alpha * s) for s in row]
        for row, r in zip(shares, right, strict=True)
    ]
    classes = [(0, 1)] if normalise == "joint" else [(0,), (1,)]
    out = [[0.0] * len(row) for row in rewards]
    for verdicts in classes:
        values = [x for row, r in zip(rewards, right, strict=True) if r in verdicts for x in row if x is not None]
        if len(values) < 2 or max(values) - min(values) <= 1e-6:
            continue
        for i, row in enumerate(rewards):
            for t, x in enumerate(row):
                if right[i] in verdicts and x is not None:
                    out[i][t] = (x - mean(values)) / (std(values, 1) + 1e-4)
    return out
