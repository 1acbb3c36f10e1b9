"""Loads the embedding and the entailment model, each only if a method names an input that it computes."""

from collections.abc import Callable, Collection
from functools import partial

from torch import Tensor

from calibrant.options import TextOptions
from calibrant.text.inputs import Readers, TextGroups, VerdictFunction


def load_readers(
    named: Collection[str], options: TextOptions, cluster: Callable[[TextGroups], Tensor], judge: VerdictFunction | None
) -> Readers:
    """Functions that compute the inputs named in `named` from texts; models that none of these needs are not loaded.

    `options` are those of a command, or a `CalibratedGRPOConfig`, which has the devices of the models too. `cluster` (N
    groups of G texts -> cluster numbers `[N, G]`) is used where there is no `entailment_model`; `judge` says which
    answers are correct. Raises CalibrantError if a model cannot be loaded.
    """
    embed = None
    if "embeddings" in named:
        from calibrant.text.embed import Embedder  # with its libraries 250 MB, which others do without

        embed = Embedder(options.embedding_model, device=getattr(options, "embedding_device", None))
    if options.entailment_model is None or not {"clusters", "entailment"} & set(named):
        return Readers(embed, cluster, None, judge)
    from calibrant.text.entail import EntailmentJudge

    device = getattr(options, "entailment_device", None)
    entailment = EntailmentJudge(options.entailment_model, device=device, dtype=options.entailment_dtype)
    by_rule = partial(entailment.clusters, rule=options.cluster_rule, threshold=options.entailment_threshold)
    return Readers(embed, by_rule, entailment.matrix, judge)
