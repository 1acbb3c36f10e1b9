"""The inputs of methods that are read from texts: embeddings, clusters, entailment, empty and correct answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibrant.signals.clusters import greedy_clusters
from calibrant.text.metrics import answer_pairs, normalise_answer

FROM_TEXT = ("embeddings", "clusters", "entailment", "empty", "correct")
CLUSTERED = ("clusters", "entailment")  # of them, those that compare meanings pairwise
TextGroups = Sequence[Sequence[str]]
VerdictFunction = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[bool | None]]
"""B answers and their B lists of references -> B verdicts, None where there is none."""


@dataclass(frozen=True)
class Readers:
    """The functions that read texts; each is called only for methods that name its input."""

    embed: Callable[[Sequence[str]], Tensor] | None = None  # B texts -> L2-normalised embeddings `[B, D]`
    cluster: Callable[[TextGroups], Tensor] | None = None  # -> numbers `[N, G]`; equal SQuAD-normalised texts when None
    entail: Callable[[TextGroups], Tensor] | None = None  # -> probabilities `[N, G, G, 3]`; `from_clusters` when None
    judge: VerdictFunction | None = None  # says which answers are correct


def read_input(
    name: str, readers: Readers, texts: TextGroups, answers: TextGroups, references: TextGroups | None
) -> Tensor | None:
    """One input of `FROM_TEXT`, `[N, G, ...]`; None without an embedder, or without a judge and references.

    Texts are embedded and clustered; answers are extracted from them and judged by the N lists of references.
    """
    cluster = readers.cluster or by_key(normalise_answer)
    if name == "clusters":
        return cluster(texts)
    if name == "entailment":
        return readers.entail(texts) if readers.entail else from_clusters(cluster(texts))
    if name == "empty":
        return torch.tensor([[not answer.strip() for answer in group] for group in answers])
    if name == "embeddings" and readers.embed is not None:
        return readers.embed([text for group in texts for text in group]).unflatten(0, (len(texts), -1))
    if name == "correct" and readers.judge is not None and references is not None:
        flat = [answer for group in answers for answer in group]
        gold = [right for group, right in answer_pairs(answers, references) for _ in group]
        verdicts = [torch.nan if verdict is None else float(verdict) for verdict in readers.judge(flat, gold)]
        return torch.tensor(verdicts).unflatten(0, (len(answers), -1))
    return None


def by_key(key: Callable[[str], str]) -> Callable[[TextGroups], Tensor]:
    """N groups of G texts -> clusters `[N, G]` of equal keys; each empty key is a cluster of its own.

    >>> by_key(str.lower)([["Paris", "paris", ""]])
    tensor([[0, 0, 1]])
    """
    return lambda groups: greedy_clusters([[key(text) for text in group] for group in groups])


def from_clusters(clusters: Tensor) -> Tensor:
    """One-hot entailment `[N, G, G, 3]` from clusters `[N, G]`: contradiction, neutral, entailment.

    Answers of one cluster entail each other, others contradict: two different answers to one question exclude each
    other (c).

    >>> from_clusters(torch.tensor([[0, 0, 1]]))[0, 0].tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    same = clusters[..., :, None] == clusters[..., None, :]
    return torch.stack([~same, torch.zeros_like(same), same], dim=-1).float()
