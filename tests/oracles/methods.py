"""Weights, rewards and advantages of methods, of one group."""

import math

from oracles.basics import clip, counted, mean, sigmoid, std
from oracles.entropies import semantic_entropy
from oracles.signals import mean_gradients


def gcpo_weight(uncertainty, dispersion, num_valid, alpha):
    if num_valid < 2:
        return 1.0
    strength = alpha / math.log(num_valid)
    return clip(1 - strength * uncertainty**2, 0, 1) * (1 + strength * dispersion)


def signal_share(gram, advantages, mask, strength=1.0):
    """Through the products of different rollouts: their mean is the squared norm of the mean less its noise."""
    kept = [i for i, m in enumerate(mask) if m and math.isfinite(gram[i][i])]
    n, square, mean_square = mean_gradients(gram, advantages, mask)
    if n < 2 or square - mean_square <= 1e-15 * square or not strength:
        return 1.0
    between = [advantages[i] * advantages[j] * gram[i][j] for i in kept for j in kept if i != j]
    noise = mean_square - math.fsum(between) / (n * (n - 1))
    return clip(1 - strength * noise / mean_square, 0, 1) if mean_square > 0 else 0.0


def meaning_share(clusters, log_mass, mask, estimator="rao"):
    """Semantic entropy over the logarithm of how many rollouts it is of; all masses equal if there are none."""
    log_mass = [0.0] * len(clusters) if log_mass is None else log_mass
    n = len([x for x, m in zip(log_mass, mask, strict=True) if m and math.isfinite(x)])
    return clip(semantic_entropy(clusters, log_mass, mask, estimator) / math.log(n), 0, 1) if n >= 2 else 0.0


def shaped_weight(shape, u, alpha, num_valid):
    if num_valid < 2:
        return 1.0
    return {
        "damp": clip(1 - alpha / math.log(num_valid) * u**2, 0, 1),
        "reciprocal": 1 / (1 + alpha * u),
        "linear": max(0.0, 1 - alpha * u),
        "exponential": math.exp(-alpha * u),
        "focal": (1 - u if u < 1 - 1e-9 else 0.0) ** alpha,
    }[shape]


def consensus_rewards(clusters, mask, empty, empty_reward, gate, min_majority):
    n = sum(mask)
    shares = []
    for i, m in enumerate(mask):
        alike = [j for j in range(len(mask)) if mask[j] and clusters[j] == clusters[i] and not empty[j]]
        shares.append(0.0 if not m else 1 / n if empty[i] else len(alike) / n)
    if gate == "all_distinct" and all(round(s * n) <= 1 for s in shares):
        return [0.0] * len(mask)
    rewards = []
    for share, m, blank in zip(shares, mask, empty, strict=True):
        if m and blank and empty_reward is not None:
            rewards.append(empty_reward)
        else:
            rewards.append(0.0 if max(shares) < min_majority else share)
    return rewards


def care_bonus(accuracy, confidence, mask, bonus, margin, upper, threshold):
    kept = [i for i, m in enumerate(mask) if m]
    c = [min(x, upper) if math.isfinite(x) and x > 0 else 0.0 for x in confidence]
    if not kept:
        return [0.0] * len(mask)
    average = mean([accuracy[i] for i in kept])
    accurate = [i for i in kept if accuracy[i] > threshold and accuracy[i] >= average - 1e-12]
    if not accurate:
        return [0.0] * len(mask)
    usual = mean([c[i] for i in accurate])
    paid = [i for i in accurate if c[i] > 0 and c[i] >= usual - margin - 1e-12]
    return [bonus * accuracy[i] if i in paid else 0.0 for i in range(len(mask))]


def agreement(clusters, mask):
    """The share of the other rollouts that mean the same."""
    rows = [i for i, m in enumerate(mask) if m]
    alike = [sum(clusters[j] == clusters[i] for j in rows if j != i) if i in rows else 0 for i in range(len(mask))]
    return [x / max(1, len(rows) - 1) for x in alike]


def capo(right, logprobs, ref_logprobs, mask, tau, ref_high, ref_low, normalise="sum", inverse_tau=True):
    """The binary form: a positive number for each right rollout, a negative one for each wrong one."""
    rows = [i for i, m in enumerate(mask) if m and math.isfinite(logprobs[i]) and math.isfinite(right[i])]
    positive, negative = [i for i in rows if right[i] == 1], [i for i in rows if right[i] == 0]
    divisor = {"sum": 1, "group": max(1, len(rows)), "pairs": max(1, len(positive) * len(negative))}[normalise]
    divisor *= tau if inverse_tau else 1
    result = [0.0] * len(mask)
    for i in positive:
        if not (math.isfinite(ref_logprobs[i]) and math.exp(-ref_logprobs[i]) > ref_high):
            result[i] = math.fsum(sigmoid(-(logprobs[i] - logprobs[j]) / tau) for j in negative) / divisor
    for j in negative:
        if not (math.isfinite(ref_logprobs[j]) and math.exp(-ref_logprobs[j]) < ref_low):
            result[j] = -math.fsum(sigmoid(-(logprobs[i] - logprobs[j]) / tau) for i in positive) / divisor
    return result


def capo_graded(rewards, logprobs, mask, tau):
    rows = [i for i, m in enumerate(mask) if m and math.isfinite(logprobs[i]) and math.isfinite(rewards[i])]
    result = [0.0] * len(mask)
    for i in rows:
        for j in rows:
            sign = (rewards[i] > rewards[j]) - (rewards[i] < rewards[j])
            gap = sign * (logprobs[i] - logprobs[j])
            result[i] += (rewards[i] - rewards[j]) / tau * sigmoid(-gap / tau)
    return result


def egpo_weights(logprobs, right, mask, low=0.5, high=2.0, eps=1e-6, reading="asymmetric"):
    rows = [i for i, m in enumerate(mask) if m and math.isfinite(logprobs[i])]
    weights = [1.0] * len(mask)
    if len(rows) < 2 or mean([-logprobs[i] for i in rows]) < eps:
        return weights
    average = mean([-logprobs[i] for i in rows])
    for i in rows:
        ratio = average / (-logprobs[i] + eps) if reading != "reversed" else -logprobs[i] / (average + eps)
        clipped = clip(ratio, low, high)
        if reading == "symmetric":
            weights[i] = clipped
        elif right[i] == 1:
            weights[i] = max(1.0, clipped)
        elif right[i] == 0:
            weights[i] = min(1.0, clipped)
    return weights


def edge_weights(entropies, mask, low=0.1, high=10.0):
    kept = counted(entropies, mask)
    if not kept or mean(kept) < 1e-6:
        return [1.0] * len(mask)
    average = mean(kept)
    known = [m and math.isfinite(h) for h, m in zip(entropies, mask, strict=True)]
    return [1 / clip(h / average, low, high) if k else 1.0 for h, k in zip(entropies, known, strict=True)]


def eg_spo_weights(entropies, mask, gate="hard", quantile=0.5, phi=0.5):
    kept = sorted(counted(entropies, mask))
    if len(kept) < 2 or kept[-1] - kept[0] <= 1e-6:
        return [1.0] * len(mask)
    place = quantile * (len(kept) - 1)
    below, above = kept[math.floor(place)], kept[math.ceil(place)]
    threshold = below + (above - below) * (place - math.floor(place))
    weights = []
    for h, m in zip(entropies, mask, strict=True):
        if not m or not math.isfinite(h):
            weights.append(1.0)
        elif gate == "hard":
            weights.append(1.0 if h >= threshold else phi)
        else:
            weights.append(phi + (1 - phi) * sigmoid((h - mean(kept)) / std(kept, 1)))
    return weights


def variance_weight(rewards, mask, low, high, form, alpha):
    kept = counted(rewards, mask)
    if len(kept) < 2:
        return 1.0
    u = clip(std(kept, 0) ** 2 / (0.25 * (high - low) ** 2), 0, 1)
    return max(0.0, 1 - alpha * u) if form == "linear" else math.exp(-alpha * u)
