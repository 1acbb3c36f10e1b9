"""Sums, means and products of Python lists."""

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


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def normalise(vector):
    length = math.sqrt(dot(vector, vector))
    return [x / length for x in vector] if length > 0 else vector


def clip(x, low, high):
    return min(max(x, low), high)


def token_mean(values, mask):
    """None if no token counts or one that counts is not finite."""
    kept = [v for v, m in zip(values, mask, strict=True) if m]
    return mean(kept) if kept and all(math.isfinite(v) for v in kept) else None


def product(a, b):
    return [[math.fsum(x * row[j] for x, row in zip(line, b, strict=True)) for j in range(len(b[0]))] for line in a]


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
