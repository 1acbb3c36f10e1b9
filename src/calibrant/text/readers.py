"""Loads the models that read texts for methods, each only if a method names its input."""

from collections.abc import Callable, Collection
from functools import partial

from torch import Tensor

from calibrant.options import TextOptions
from calibrant.text.embed import Embedder
from calibrant.text.entail import EntailmentJudge
from calibrant.text.inputs import Readers, TextGroups, VerdictFunction


def load_readers(
    named: Collection[str], options: TextOptions, same: Callable[[TextGroups], Tensor], judge: VerdictFunction | None
) -> Readers:
    """The readers of the inputs that methods name.

    `options` may be a `CalibratedGRPOConfig`, which has the same options and devices. Without an `entailment_model`,
    `same` compares answers: N groups of G texts -> cluster numbers `[N, G]`.
    """
    embed = None
    if "embeddings" in named:
        embed = Embedder(options.embedding_model, device=getattr(options, "embedding_device", None))
    if options.entailment_model is None or not {"clusters", "entailment"} & set(named):
        return Readers(embed, same, None, judge)
    device = getattr(options, "entailment_device", None)
    entailment = EntailmentJudge(options.entailment_model, device=device, dtype=options.entailment_dtype)
    by_rule = partial(entailment.clusters, rule=options.cluster_rule, threshold=options.entailment_threshold)
    return Readers(embed, by_rule, entailment.matrix, judge)
