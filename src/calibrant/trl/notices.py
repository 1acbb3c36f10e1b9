"""Notices about clusters that are not those of the paper, and about weights that hardly differ."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from calibrant.methods import Method
from calibrant.scorer import ENOUGH as ENOUGH_GROUPS
from calibrant.scorer import Scored, flat_weights

log = logging.getLogger(__name__)

FROM_ENTAILMENT = ("gcpo_bot", "grpo_se", "grpo_kle")
"""Methods whose clusters or comparisons come from an entailment model in the GCPO paper."""
PAPER_MODEL = "roberta-large-mnli"  # GCPO, appendix E.3
MANY_SINGLES = 0.9  # share of clusters of one answer above which clusters say nothing
ENOUGH = 64  # clusters that the share is judged from


class ClusterNotices:
    """Says once that equal keys stand for meanings, and once if nearly every answer is a cluster of its own."""

    def __init__(self, method: str, entailment_model: str | None):
        self.method, self.by_keys = method, entailment_model is None
        self.clusters = self.singles = 0
        if self.by_keys and method in FROM_ENTAILMENT:
            log.warning(
                "method '%s': answers with equal keys (normalised text, unless the task or `cluster` compares them "
                "otherwise) form a cluster; the paper's clusters come from an entailment model, which "
                "--entailment-model %s (entailment_model in a script) sets",
                *(method, PAPER_MODEL),
            )

    def see(self, inputs: Mapping[str, Tensor], where: Tensor, step: int) -> None:
        """Counts the clusters of a batch of groups."""
        if "clusters" not in inputs or not self.by_keys or self.singles < 0:
            return
        sizes = cluster_sizes(inputs["clusters"], where)
        self.clusters, self.singles = self.clusters + len(sizes), self.singles + int((sizes == 1).sum())
        if self.clusters >= ENOUGH and self.singles > MANY_SINGLES * self.clusters:
            log.warning(
                "method '%s', step %d: %.0f%% of the %d clusters so far are single answers, so clusters say nothing "
                "(barycentric transport is cosine dispersion, entropies over clusters are constant); an entailment "
                "model compares meanings: --entailment-model %s",
                *(self.method, step, 100 * self.singles / self.clusters, self.clusters, PAPER_MODEL),
            )
            self.singles = -1  # said


class WeightNotice:
    """Says once if the weights of the first groups with an advantage hardly differ."""

    def __init__(self, method: Method):
        self.method = method
        self.weights: list[Tensor] | None = []  # mean weight per group; None once judged

    def see(self, scored: Scored) -> None:
        """Adds a batch of groups."""
        if self.weights is None or scored.outcome.weights.ndim > 2:  # weights per token differ within a rollout
            return
        outcome, where = scored.outcome, scored.groups.where
        counts = (where.sum(-1) >= 2) & (outcome.base != 0).any(-1)
        self.weights.append(outcome.weights[counts].flatten(1).mean(-1).cpu())
        if sum(map(len, self.weights)) >= ENOUGH_GROUPS:
            sentence, self.weights = flat_weights(torch.cat(self.weights), self.method), None
            if sentence:
                log.warning("%s", sentence)


def cluster_sizes(clusters: Tensor, where: Tensor) -> Tensor:
    """The number of counted rollouts in each cluster of each group, `[K]`.

    >>> cluster_sizes(torch.tensor([[0, 0, 1], [0, 1, 2]]), torch.tensor([[True] * 3, [True, True, False]]))
    tensor([2, 1, 1, 1])
    """
    groups = torch.arange(len(clusters), device=clusters.device)[:, None].expand(clusters.shape)
    return torch.stack([groups[where], clusters[where]], dim=1).unique(dim=0, return_counts=True)[1]
