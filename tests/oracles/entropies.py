"""Entropies of one group."""

import math

from oracles.basics import counted, mean, product


def cluster_masses(clusters, log_mass, mask):
    """The mass of each cluster, as a dictionary, over the rows that are left."""
    rows = [(c, x) for c, x, m in zip(clusters, log_mass, mask, strict=True) if m and math.isfinite(x)]
    if not rows:
        return {}
    top = max(x for _, x in rows)
    total = math.fsum(math.exp(x - top) for _, x in rows)
    return {k: math.fsum(math.exp(x - top) for c, x in rows if c == k) / total for k in {c for c, _ in rows}}


def semantic_entropy(clusters, log_mass, mask, estimator="rao"):
    masses = list(cluster_masses(clusters, log_mass, mask).values())
    if not masses:
        return 0.0
    if estimator == "mc":
        return -math.fsum(math.log(p) for p in masses) / len(masses)
    return -math.fsum(p * math.log(p) for p in masses if p > 0)


def predictive_entropy(logprobs, mask):
    kept = counted(logprobs, mask)
    return -mean(kept) if kept else 0.0


def matrix_exponential(a):
    """The series of exp(a / 2^10), squared ten times."""
    n = len(a)
    power = total = [[float(i == j) for j in range(n)] for i in range(n)]
    for k in range(1, 20):
        power = [[x / k / 1024 for x in row] for row in product(power, a)]
        total = [[x + y for x, y in zip(r, s, strict=True)] for r, s in zip(total, power, strict=True)]
    for _ in range(10):
        total = product(total, total)
    return total


def inverse(a):
    """Gauss and Jordan, without pivots: the matrices here are positive definite."""
    n = len(a)
    rows = [list(row) + [float(i == j) for j in range(n)] for i, row in enumerate(a)]
    for i in range(n):
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for j in range(n):
            if j != i:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], rows[i], strict=True)]
    return [row[n:] for row in rows]


def eigenvalues(a, sweeps=12):
    """Jacobi's rotations of a symmetric matrix."""
    a, n = [list(row) for row in a], len(a)
    for _ in range(sweeps):
        for p in range(n):
            for q in range(p + 1, n):
                angle = 0.5 * math.atan2(2 * a[p][q], a[q][q] - a[p][p])
                c, s = math.cos(angle), math.sin(angle)
                for k in range(n):
                    a[k][p], a[k][q] = c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]
                for k in range(n):
                    a[p][k], a[q][k] = c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]
    return [a[i][i] for i in range(n)]


def kernel_language_entropy(entailment, mask, kernel, t=None, kappa=1.0, nu=1, clusters=None, log_mass=None, alpha=1.0):
    """One graph: probabilities of (contradiction, neutral, entailment), the kernel by series or inverse, nu integer."""
    rows = [i for i, m in enumerate(mask) if m]
    n = len(rows)
    if n < 2:
        return 0.0

    def link(i, j):
        return 0.0 if i == j else math.fsum(p[2] + 0.5 * p[1] for p in (entailment[i][j], entailment[j][i]))

    weights = [[link(i, j) for j in rows] for i in rows]
    laplacian = [[math.fsum(weights[i]) * (i == j) - weights[i][j] for j in range(n)] for i in range(n)]
    if kernel == "heat":
        k = matrix_exponential([[-(3.0 / n if t is None else t) * x for x in row] for row in laplacian])
    else:
        base = inverse([[laplacian[i][j] + 2 * nu / kappa**2 * (i == j) for j in range(n)] for i in range(n)])
        k = base
        for _ in range(nu - 1):
            k = product(k, base)
    k = [[k[i][j] / math.sqrt(k[i][i] * k[j][j]) / n for j in range(n)] for i in range(n)]
    if clusters is not None:
        ids = [clusters[i] for i in rows]
        masses = cluster_masses(ids, [log_mass[i] for i in rows], [True] * n)
        for i in range(n):
            for j in range(n):
                block = masses[ids[i]] / ids.count(ids[i]) if ids[i] == ids[j] else 0.0
                k[i][j] = alpha * k[i][j] + (1 - alpha) * block
    return -math.fsum(x * math.log(x) for x in eigenvalues(k) if x > 1e-15)


def nearest_neighbour_entropy(similarity, tau, weights, mask):
    rows = [i for i, m in enumerate(mask) if m]
    if not rows:
        return 0.0
    average = mean([weights[i] for i in rows])
    return -mean(
        [weights[i] / average * math.log(math.fsum(math.exp(similarity[i][j] / tau) for j in rows)) for i in rows]
    )
