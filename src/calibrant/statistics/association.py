"""How closely signals follow a quantity such as the gradient variance: all statistics in one call."""

from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError
from calibrant.statistics.bootstrap import PairedBootstrap, paired_bootstrap
from calibrant.statistics.correlation import Spearman, spearman
from calibrant.statistics.counted import check_count, counted
from calibrant.statistics.prediction import CrossValidatedFit, cross_validated_fit
from calibrant.statistics.ranks import sort_counted
from calibrant.statistics.retrieval import auc, precision_at, top_labels


class Association(NamedTuple):
    """What `association` finds for S signals of N prompts."""

    kept: Tensor  # [N], boolean: the prompts that all figures are of
    spearman: Spearman  # rho and p, each [S]
    auc: Tensor  # [S], of finding the top share by target
    precision: Tensor  # [S], of the top share by signal
    spearman_bootstrap: PairedBootstrap
    auc_bootstrap: PairedBootstrap
    fit: CrossValidatedFit


def without_outliers(values: Tensor, count: int = 20, where: Tensor | None = None) -> Tensor:
    """Which entries remain without the `count` largest values, `[..., N]` boolean: a `where` for other statistics.

    Of equal values at the border the later ones are removed first. A NaN is not kept, nor is it one of the `count`; an
    infinity is a largest value. CalibrantError if nothing would remain.

    Reference: GCPO, D.1: the 20 samples of largest gradient variance are removed (b).

    >>> without_outliers(torch.tensor([3.0, 9.0, torch.nan, 5.0]), count=1)
    tensor([ True, False, False,  True])
    """
    check_count("without_outliers", least=0, count=count)
    mask = counted("without_outliers", where, values=values)
    size = mask.sum(-1, keepdim=True)
    if count and bool((size <= count).any()):
        raise CalibrantError(f"without_outliers: {count} outliers are to be removed from {int(size.min())} values")
    order = sort_counted(values, mask)[1]
    position = torch.arange(values.shape[-1], device=values.device).expand_as(order)
    return torch.zeros_like(order).scatter(-1, order, position) < size - count


def association(
    signals: Tensor,
    target: Tensor,
    *,
    where: Tensor | None = None,
    outliers: int = 20,
    share: float = 0.1,
    folds: int = 5,
    resamples: int = 2000,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> Association:
    """How closely each signal follows the target, prompt by prompt.

    1. Prompts with a NaN in any signal or in the target are out, then the `outliers` largest targets.
    2. `spearman` of each signal with the target.
    3. The top share by target becomes the label: `auc` of finding it, and `precision_at` the same share.
    4. `paired_bootstrap` of the rank correlation and of the area, for all pairs of signals.
    5. `cross_validated_fit` of the target on each signal.

    Args:
        signals: `[S, N]`, e.g. token entropy, semantic entropy, cosine dispersion, barycentric transport.
        target: `[N]`, e.g. the gradient variance `V(q)`, or the success rate.
        share: of the prompts with the largest targets, which have the label.
        resamples, level: of each bootstrap.

    Reference: GCPO, appendix D and tables 3 and 4 (b). That the label is made after the outliers are gone, from "the
    remaining dataset", and that tables 3 and 4 remove outliers too, are interpretations (c).
    """
    check_shapes("association", signals=(signals, "S N"), target=(target, "N"), where=(where, "N"))
    complete = counted("association", where, signals=signals, target=target).all(0)
    kept = without_outliers(target, outliers, complete)
    x, y = signals[:, kept], target[kept]
    label = top_labels(y, share)
    return Association(
        kept,
        spearman(x, y),
        auc(x, label),
        precision_at(x, y, share),
        paired_bootstrap(x, y, resamples=resamples, level=level, generator=generator),
        paired_bootstrap(x, label, "auc", resamples=resamples, level=level, generator=generator),
        cross_validated_fit(x, y, folds, generator=generator),
    )
