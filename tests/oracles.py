"""The same definitions again, slow and obvious: one group at a time, loops over Python floats, nothing shared."""

import math


def counted(values, mask):
    return [v for v, m in zip(values, mask, strict=True) if m and math.isfinite(v)]


def mean(values):
    return math.fsum(values) / len(values)


def std(values, ddof):
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - ddof))


def informative(rewards, mask, tol=1e-6):
    kept = counted(rewards, mask)
    return len(kept) >= 2 and max(kept) - min(kept) > tol


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


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def normalise(vector):
    length = math.sqrt(dot(vector, vector))
    return [x / length for x in vector] if length > 0 else vector


def clip(x, low, high):
    return min(max(x, low), high)


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


def gcpo_weight(uncertainty, dispersion, num_valid, alpha):
    if num_valid < 2:
        return 1.0
    strength = alpha / math.log(num_valid)
    return clip(1 - strength * uncertainty**2, 0, 1) * (1 + strength * dispersion)
