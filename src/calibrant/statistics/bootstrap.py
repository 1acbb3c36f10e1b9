"""Which of several signals is better, with the prompts as the sample: the paired bootstrap."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError, nearest
from calibrant.groups import like_input
from calibrant.statistics.correlation import rank_correlation
from calibrant.statistics.counted import as_labels, check_count, check_fraction, counted
from calibrant.statistics.resampling import bootstrap_replicates, percentile_interval, sign_p
from calibrant.statistics.retrieval import pair_share, top_overlap

Statistic = Callable[[Tensor, Tensor], Tensor]


class PairedBootstrap(NamedTuple):
    """A statistic of S signals, and all differences between them; index `[i, j]` is signal i minus signal j."""

    value: Tensor  # [S], on all prompts, each once
    low: Tensor  # [S], ends of the interval of the value
    high: Tensor
    difference: Tensor  # [S, S], on all prompts, each once
    difference_low: Tensor  # [S, S], ends of the interval of the difference
    difference_high: Tensor
    p: Tensor  # [S, S], two-sided; 1 on the diagonal


def _all_count(x: Tensor, y: Tensor) -> Tensor:
    return torch.ones(torch.broadcast_shapes(x.shape, y.shape), dtype=torch.bool, device=x.device)


STATISTICS: dict[str, Statistic] = {
    "spearman": lambda x, y: rank_correlation(x, y, _all_count(x, y)),
    "auc": lambda x, y: pair_share(x, y == 1, _all_count(x, y)),
    "precision_at": lambda x, y: top_overlap(x, y, _all_count(x, y)),
}


def paired_bootstrap(
    signals: Tensor,
    target: Tensor,
    statistic: str | Statistic = "spearman",
    *,
    where: Tensor | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> PairedBootstrap:
    """Differences of a statistic between signals, over the same resampled prompts.

    In each replicate b, N prompts are drawn with replacement and `Delta_ij^(b) = s(u_i, y) - s(u_j, y)` is computed
    on them for all pairs of signals. The interval is the central part of the replicates;
    `p = min(1, 2 min(1 + #{Delta <= 0}, 1 + #{Delta >= 0}) / (1 + R))`.

    Args:
        signals: `[S, N]`; a prompt with a NaN in any signal or in the target is out for all of them: pairs.
        target: `[N]`, e.g. the gradient variance; 0 and 1 for "auc", where a label is a property of its prompt and
            is not redrawn (c).
        statistic: "spearman", "auc", "precision_at" (the top tenth of each replicate), or a function
            `(x [..., N], y [..., N]) -> [...]` that broadcasts leading axes. A replicate in which it is NaN is left
            out; a value that is not defined on all prompts (a constant signal, a single label) is 0, or 0.5 for "auc".
        resamples: R.
        level: of the intervals, in (0, 1).

    Reference: GCPO, D.6 (b); its bounds "strictly above zero" read as percentiles, the p-value and its added 1 are
    interpretations (c).

    >>> y = torch.arange(30.0)
    >>> result = paired_bootstrap(torch.stack([y, y % 7]), y, resamples=200)
    >>> result.value[0].item(), bool(result.difference_low[0, 1] > 0), bool(result.p[0, 1] < 0.05)
    (1.0, True, True)
    """
    function = _checked(signals, target, statistic, where)
    check_count("paired_bootstrap", resamples=resamples)
    check_fraction("paired_bootstrap", level=level)
    mask = counted("paired_bootstrap", where, signals=signals, target=target).all(0)
    x, y = signals.detach()[:, mask], target.detach()[mask]
    if not len(y):
        raise CalibrantError("paired_bootstrap: no prompt is left; each has a NaN or is excluded by where")
    otherwise = 0.5 if statistic == "auc" else 0.0
    value = function(x, y).double().nan_to_num(otherwise)
    replicates = bootstrap_replicates(
        lambda rows: function(x[:, rows], y[rows]).double().T,
        len(y), resamples, width=x.numel(), device=x.device, generator=generator,
    )  # fmt: skip
    difference = value[:, None] - value
    differences = replicates[:, :, None] - replicates[:, None, :]
    low, high = percentile_interval(value, replicates, level)
    below, above = percentile_interval(difference, differences, level)
    results = (value, low, high, difference, below, above, sign_p(differences))
    return PairedBootstrap(*(like_input(r, signals) for r in results))


def _checked(signals: Tensor, target: Tensor, statistic: str | Statistic, where: Tensor | None) -> Statistic:
    check_shapes("paired_bootstrap", signals=(signals, "S N"), target=(target, "N"), where=(where, "N"))
    if callable(statistic):
        return statistic
    if statistic not in STATISTICS:
        hint = nearest(str(statistic), STATISTICS)
        raise CalibrantError(
            f"paired_bootstrap: no statistic is named {statistic!r}{hint}; give {', '.join(STATISTICS)} or a function"
        )
    if statistic == "auc":
        as_labels("paired_bootstrap", "target", target)
    return STATISTICS[statistic]
