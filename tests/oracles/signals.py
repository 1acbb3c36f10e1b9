"""Dispersions, gradients and clusters of one group."""

import math

from oracles.basics import clip, counted, dot, mean, normalise


def cosine_dispersion(embeddings, mask):
    """The paper's double sum over the rows that are left."""
    e = [normalise(v) for v, m in zip(embeddings, mask, strict=True) if m]
    if not e:
        return 0.0
    total = 0.0
    for i in range(len(e)):
        for j in range(len(e)):
            total += 0.0 if i == j else clip(1 - dot(e[i], e[j]), 0, 1)
    return total / len(e) ** 2


def barycentric_transport(embeddings, clusters, mask):
    """The paper's sum over clusters with the barycentre direction, not the closed form."""
    rows = [(normalise(v), c) for v, c, m in zip(embeddings, clusters, mask, strict=True) if m]
    if not rows:
        return 0.0
    modes = []
    for cluster in {c for _, c in rows}:
        members = [v for v, c in rows if c == cluster]
        centroid = normalise([math.fsum(xs) / len(rows) for xs in zip(*members, strict=True)])
        modes.append((len(members) / len(rows), centroid))
    width = len(rows[0][0])
    barycentre = normalise([math.fsum(mass * mu[d] for mass, mu in modes) for d in range(width)])
    return clip(sum(mass * (1 - dot(mu, barycentre)) / 2 for mass, mu in modes), 0, 1)


def reward_dispersion(rewards, mask, low, high):
    kept = counted(rewards, mask)
    n = len(kept)
    if n < 2:
        return 0.0
    raw = math.fsum(abs(r - mean(kept)) for r in kept)
    return clip(raw / (2 / n * (n // 2) * math.ceil(n / 2) * (high - low)), 0, 1)


def greedy_from_entailment(probabilities, mask, threshold):
    """One new answer at a time against the first member of every cluster."""
    first, ids = [], []
    for j in range(len(probabilities)):
        if not mask[j]:
            ids.append(-1)
            continue
        best, best_probability = None, -1.0
        for cluster, i in enumerate(first):
            if probabilities[i][j] > best_probability:
                best, best_probability = cluster, probabilities[i][j]
        if best is not None and best_probability >= threshold:
            ids.append(best)
        else:
            ids.append(len(first))
            first.append(j)
    return ids


def greedy_from_keys(keys, mask):
    seen, ids = [], []
    for key, m in zip(keys, mask, strict=True):
        if not m:
            ids.append(-1)
        elif key != "" and key in seen:
            ids.append(seen.index(key))
        else:
            ids.append(len(seen))
            seen.append(key if key != "" else object())
    return ids


def mean_gradients(gram, weights, mask):
    """How many rollouts count, the mean squared norm of `w_i g_i`, and the squared norm of their mean."""
    kept = [i for i, m in enumerate(mask) if m and math.isfinite(gram[i][i])]
    n = max(len(kept), 1)
    square = math.fsum(weights[i] ** 2 * gram[i][i] for i in kept) / n
    return len(kept), square, math.fsum(weights[i] * weights[j] * gram[i][j] for i in kept for j in kept) / n**2


def head_gradient_dispersion(gram, mask):
    n, square, mean_square = mean_gradients(gram, [1.0] * len(gram), mask)
    return clip(1 - mean_square / square, 0, 1) if n >= 2 and square > 0 else 0.0


def largest_share(clusters, mask):
    kept = [c for c, m in zip(clusters, mask, strict=True) if m]
    return max(kept.count(c) for c in kept) / len(kept) if kept else 0.0
