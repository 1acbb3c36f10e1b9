"""What methods read from texts: embeddings, clusters, entailment, which answers are empty, which are correct."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibrant.signals.clusters import greedy_clusters
from calibrant.text.metrics import normalise_answer

FROM_TEXT = ("embeddings", "clusters", "entailment", "empty", "correct")
"""The inputs of methods that texts give."""

TextGroups = Sequence[Sequence[str]]
Judge = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[bool | None]]


@dataclass(frozen=True)
class Readers:
    """The functions that read texts; each is called only where a method names what it gives.

    Attributes:
        embed: B texts -> L2-normalised embeddings `[B, D]`; needed by methods that name `embeddings`.
        cluster: N groups of G texts -> cluster numbers `[N, G]`; equal SQuAD-normalised texts when None.
        entail: N groups of G texts -> probabilities `[N, G, G, 3]`; `from_clusters` when None.
        judge: B answers and their B lists of references -> B verdicts, None where there is none.
    """

    embed: Callable[[Sequence[str]], Tensor] | None = None
    cluster: Callable[[TextGroups], Tensor] | None = None
    entail: Callable[[TextGroups], Tensor] | None = None
    judge: Judge | None = None


def read(
    name: str,
    readers: Readers,
    texts: TextGroups,
    answers: TextGroups,
    references: TextGroups | None,
) -> Tensor | None:
    """One input of a method, from texts.

    Args:
        name: one of `FROM_TEXT`.
        readers: the functions that read.
        texts: N groups of G texts that carry the meaning.
        answers: N groups of G extracted answers.
        references: the right answers of each prompt, N lists, where they are known.

    Returns:
        `[N, G, ...]`, or None where nothing supplies it: no embedder, nothing that says what is correct.
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
        gold = [known for known, group in zip(references, answers, strict=True) for _ in group]
        verdicts = [torch.nan if right is None else float(right) for right in readers.judge(flat, gold)]
        return torch.tensor(verdicts).unflatten(0, (len(answers), -1))
    return None


def one_at_a_time(is_correct: Callable[[str, list[str]], bool]) -> Judge:
    """A judge of batches from one of single answers.

    >>> one_at_a_time(lambda answer, references: answer in references)(["4", "5"], [["4"], ["4"]])
    [True, False]
    """
    return lambda answers, references: [is_correct(a, list(gold)) for a, gold in zip(answers, references, strict=True)]


def by_key(key: Callable[[str], str]) -> Callable[[TextGroups], Tensor]:
    """Clusters of equal keys; each empty key is a cluster of its own.

    >>> by_key(str.lower)([["Paris", "paris", ""]])
    tensor([[0, 0, 1]])
    """
    return lambda groups: greedy_clusters([[key(text) for text in group] for group in groups])


def from_clusters(clusters: Tensor) -> Tensor:
    """Entailment without an entailment model: answers of one cluster entail each other, others contradict.

    Interpretation (c): two different answers to one question exclude each other.

    Args:
        clusters: `[N, G]`.

    Returns:
        `[N, G, G, 3]`, one-hot in the order contradiction, neutral, entailment.

    >>> from_clusters(torch.tensor([[0, 0, 1]]))[0, 0].tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    same = clusters[..., :, None] == clusters[..., None, :]
    return torch.stack([~same, torch.zeros_like(same), same], dim=-1).float()
