"""Whether a signal predicts a quantity for prompts that were not used to fit it."""

from typing import NamedTuple

import torch
from torch import Tensor

from calibrant.checks import check_shapes
from calibrant.errors import CalibrantError
from calibrant.groups import like_input
from calibrant.statistics.correlation import rank_correlation
from calibrant.statistics.counted import check_count, counted
from calibrant.statistics.resampling import private_generator


class CrossValidatedFit(NamedTuple):
    """Errors of a linear fit on held-out prompts; leading axes as those of the signals."""

    mae: Tensor  # [...], mean absolute error, in units of the target: the mean over folds
    spearman: Tensor  # [...], rank correlation of prediction and target: the mean over folds
    fold_mae: Tensor  # [..., F]
    fold_spearman: Tensor  # [..., F]; 0 in a fold whose predictions or targets are all equal
    baseline_mae: Tensor  # [], error if the mean of the other folds is the prediction: that of a useless signal
    prediction: Tensor  # [..., N], each from a fit without its prompt; 0 for prompts that do not count


def cross_validated_fit(
    signal: Tensor,
    target: Tensor,
    folds: int = 5,
    *,
    where: Tensor | None = None,
    joint: bool = False,
    generator: torch.Generator | None = None,
) -> CrossValidatedFit:
    """Least squares `V(q) = b_0 + b_1 u(q)`, evaluated on held-out folds.

    The prompts are shuffled and cut into F folds whose sizes differ by at most one; each fold is predicted by the fit
    to the others. A signal that is constant in a training part predicts the mean.

    Args:
        signal: `[..., N]`; each row of the leading axes is fitted separately, on the same folds.
        target: `[N]`, e.g. the gradient variance.
        folds: F, at least 2.
        where: `[N]`, boolean. A prompt with a value that is not finite in any signal or in the target is out for all.
        joint: fit all rows of signals `[P, N]` together, `V = b_0 + sum_p b_p u_p`; the result has no leading axes.

    Reference: GCPO, D.7 (b). The number of folds, the shuffle, and means over folds instead of one figure for all
    held-out predictions together are interpretations (c).

    >>> u = torch.arange(20.0)
    >>> fit = cross_validated_fit(u, 3 * u + 1)
    >>> bool(fit.mae < 1e-4), fit.spearman.item(), fit.baseline_mae > fit.mae
    (True, 1.0, tensor(True))
    """
    check_shapes("cross_validated_fit", target=(target, "N"), where=(where, "N"))
    present = counted("cross_validated_fit", where, signal=signal, target=target)
    check_count("cross_validated_fit", least=2, folds=folds)
    if joint and signal.ndim != 2:
        raise CalibrantError(f"cross_validated_fit: a joint fit takes signals [P, N], got {list(signal.shape)}")
    rows = (present & torch.isfinite(signal) & torch.isfinite(target))[None].flatten(0, -2).all(0).nonzero()[:, 0]
    if len(rows) < folds:
        raise CalibrantError(f"cross_validated_fit: {len(rows)} prompts count, fewer than the {folds} folds")
    features = (signal if joint else signal[..., None, :]).mT[..., rows, :].detach().double()
    fold = _fold_numbers(len(rows), folds, target.device, generator)
    fit = _evaluate(features, target[rows].detach().double(), fold, folds)
    prediction = signal.new_zeros((*fit.prediction.shape[:-1], len(target)), dtype=torch.float64)
    prediction[..., rows] = fit.prediction
    return CrossValidatedFit(*(like_input(x, signal) for x in (*fit[:-1], prediction)))


def _fold_numbers(count: int, folds: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    source = private_generator(generator, device)
    order = torch.randperm(count, generator=source, device=source.device).to(device)
    return torch.empty_like(order).scatter(0, order, torch.arange(count, device=device) % folds)


def _evaluate(features: Tensor, target: Tensor, fold: Tensor, folds: int) -> CrossValidatedFit:
    """Fits to features `[..., n, P]` and their errors on held-out folds, in float64."""
    size = target.abs().amax().clamp(min=torch.finfo(torch.float64).tiny)
    features, scaled = _unit(features), target / size
    prediction = torch.zeros_like(features[..., 0])
    baseline, mae, spearman = [], [], []
    for test in (fold == number for number in range(folds)):
        prediction[..., test] = _predict(features[..., ~test, :], scaled[~test], features[..., test, :])
        mae.append((prediction[..., test] - scaled[test]).abs().mean(-1))
        baseline.append((scaled[~test].mean() - scaled[test]).abs().mean())
        every = torch.ones_like(prediction[..., test], dtype=torch.bool)
        spearman.append(rank_correlation(prediction[..., test], scaled[test], every).nan_to_num(0.0))
    errors, ranks = torch.stack(mae, -1) * size, torch.stack(spearman, -1)
    overall = torch.stack(baseline).mean() * size
    return CrossValidatedFit(errors.mean(-1), ranks.mean(-1), errors, ranks, overall, prediction * size)


def _predict(train: Tensor, target: Tensor, test: Tensor) -> Tensor:
    """Least squares with an intercept, by the pseudo-inverse of centred features of unit size; `[..., m]`."""
    differs = train.amax(-2, keepdim=True) > train.amin(-2, keepdim=True)
    centre, mean = train.mean(-2, keepdim=True), target.mean()
    x = torch.where(differs, train - centre, 0.0)
    size = torch.where(differs, x.abs().amax(-2, keepdim=True), 1.0)
    slope = torch.linalg.pinv(x / size) @ (target - mean)
    return mean + (torch.where(differs, (test - centre) / size, 0.0) @ slope[..., None]).squeeze(-1)


def _unit(features: Tensor) -> Tensor:
    """Each feature divided by its largest magnitude: squares of large values do not overflow."""
    size = features.abs().amax(-2, keepdim=True)
    return features / torch.where(size > 0, size, 1.0)
