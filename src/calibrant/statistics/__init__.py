"""Statistics of signals against a quantity per prompt: rank correlation, retrieval, paired bootstrap, held-out fits.

Signals are `[..., N]`, one value per prompt; leading axes are batch axes. `where` `[..., N]`, boolean, says which
prompts count; a NaN is out of every statistic. Draws come from `generator`; None: a new one with seed 0. Computed in
float64, detached, and returned in the type of the first argument. CalibrantError is raised where shapes or options are
not as documented. Sources: (a) read in the authors' code, (a*) in code of others, (b) in the paper, (c) an
interpretation. Comparisons of trained models are in `calibrant.statistics.comparison`.
"""

from calibrant.statistics.association import Association, association, without_outliers
from calibrant.statistics.bootstrap import PairedBootstrap, paired_bootstrap
from calibrant.statistics.correlation import Spearman, spearman
from calibrant.statistics.prediction import CrossValidatedFit, cross_validated_fit
from calibrant.statistics.retrieval import auc, precision_at, top_labels

__all__ = [
    "Association", "CrossValidatedFit", "PairedBootstrap", "Spearman", "association", "auc", "cross_validated_fit",
    "paired_bootstrap", "precision_at", "spearman", "top_labels", "without_outliers",
]  # fmt: skip
