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


def mean_gradients(gram, weights, mask):
    """How many rollouts count, the mean squared norm of `w_i g_i`, and the squared norm of their mean."""
    kept = [i for i, m in enumerate(mask) if m and math.isfinite(gram[i][i])]
    n = max(len(kept), 1)
    square = math.fsum(weights[i] ** 2 * gram[i][i] for i in kept) / n
    return len(kept), square, math.fsum(weights[i] * weights[j] * gram[i][j] for i in kept for j in kept) / n**2


def head_gradient_dispersion(gram, mask):
    n, square, mean_square = mean_gradients(gram, [1.0] * len(gram), mask)
    return clip(1 - mean_square / square, 0, 1) if n >= 2 and square > 0 else 0.0


def signal_share(gram, advantages, mask, strength=1.0):
    """Through the products of different rollouts: their mean is the squared norm of the mean less its noise."""
    kept = [i for i, m in enumerate(mask) if m and math.isfinite(gram[i][i])]
    n, square, mean_square = mean_gradients(gram, advantages, mask)
    if n < 2 or square - mean_square <= 1e-15 * square or not strength:
        return 1.0
    between = [advantages[i] * advantages[j] * gram[i][j] for i in kept for j in kept if i != j]
    noise = mean_square - math.fsum(between) / (n * (n - 1))
    return clip(1 - strength * noise / mean_square, 0, 1) if mean_square > 0 else 0.0


def token_mean(values, mask):
    """None if no token counts or one that counts is not finite."""
    kept = [v for v, m in zip(values, mask, strict=True) if m]
    return mean(kept) if kept and all(math.isfinite(v) for v in kept) else None


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


def largest_share(clusters, mask):
    kept = [c for c, m in zip(clusters, mask, strict=True) if m]
    return max(kept.count(c) for c in kept) / len(kept) if kept else 0.0


def product(a, b):
    return [[math.fsum(x * row[j] for x, row in zip(line, b, strict=True)) for j in range(len(b[0]))] for line in a]


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


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


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
