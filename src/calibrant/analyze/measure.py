"""Measures one group: every signal, and the exact gradient variance.

A group is a batch of one prompt, `[1, G]` and `[1, G, ...]`; `where` `[1, G]` marks the rollouts that count.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibrant import signals
from calibrant.advantages import standardised
from calibrant.analyze.groups import Group, frequent_answers
from calibrant.analyze.parameters import Measured
from calibrant.analyze.settings import AnalyzeSettings
from calibrant.analyze.weights import group_weights
from calibrant.errors import CalibrantError
from calibrant.files import JsonObject
from calibrant.gradients import block_gram, gradient_variance
from calibrant.gradients.variance import weighted_variance
from calibrant.groups import group_mean, has_spread, valid
from calibrant.policy import SharedPrefix, logps_in_chunks
from calibrant.policy.head import find_head
from calibrant.policy.prompts import Tokens
from calibrant.report.names import SIGNALS
from calibrant.rollouts import RolloutGroups
from calibrant.signals import moments
from calibrant.signals.clusters import entailment_clusters
from calibrant.tasks.base import Task
from calibrant.text.entail import EntailmentJudge
from calibrant.text.inputs import FROM_TEXT, Readers, read_input

HEAD_SIGNALS = ("head_gradient_variance", "head_score_variance", "head_gradient_dispersion", "gradient_snr_weight")
BLOCK_SIGNALS = ("block_gradient_variance", "block_score_variance", "block_gradient_dispersion", "block_signal_share")


@dataclass(frozen=True)
class MeasureContext:
    """The models and options that groups are measured with."""

    model: PreTrainedModel  # the policy whose gradients are measured
    task: Task  # extracts answers and gives the reward range
    readers: Readers  # compute embeddings, clusters and verdicts from texts
    entailment: EntailmentJudge | None  # None: clusters are equal normalised answers
    settings: AnalyzeSettings
    measured: Measured  # the parameters that V(q) is of


def measure_group(index: int, group: Group, context: MeasureContext) -> tuple[JsonObject, list[JsonObject]]:
    """Measures one group, alone in its batch, so that its numbers depend on no other group.

    Returns a line of `groups.jsonl`, and the rows of the group with log-probabilities, token entropies and clusters.
    """
    frame = pd.DataFrame(group.rows)
    groups = RolloutGroups(frame, context.task.extract)
    rewards, where = groups.rewards, valid(groups.rewards)
    forward = _forward(context, group.tokens) if group.read is None else group.read
    texts = _from_texts(groups, context)
    correct = torch.where(where, texts["correct"], torch.nan)
    total = _trained_on(frame, rewards)
    advantages = torch.where(where, standardised(total), torch.nan)
    reward_range = context.task.reward_range if "reward" in frame else (0.0, 1.0)
    likelihoods = _likelihoods(forward, group.tokens)
    grams = {"head_gram": _head_gram(forward, group.tokens, context), "block_gram": _block_gram(group.tokens, context)}
    scores = {
        **_likelihood_signals(forward, group.tokens, texts["clusters"], where),
        **_semantic_signals(texts, where),
        "reward_dispersion": signals.reward_dispersion(rewards, reward_range),
        "reward_mean": group_mean(rewards) if bool(where.any()) else None,
        **_gradient_signals(grams["head_gram"], advantages, HEAD_SIGNALS),
        **_gradient_signals(grams["block_gram"], advantages, BLOCK_SIGNALS),
    }
    inputs = {name: x for name, x in {**texts, **likelihoods, **grams}.items() if x is not None}
    line = {
        "index": index,
        "prompt_id": str(group.rows[0]["prompt_id"]),
        "rollouts": len(group.rows),
        "scorable": int(where.sum()),
        "clusters": int(texts["clusters"][where].unique().numel()),
        "outcome": _outcome(rewards, correct),
        "success_rate": finite_or_none(correct.nanmean()),
        "signals": {name: finite_or_none(scores.get(name)) for name in SIGNALS},
        "weights": group_weights(rewards, where, {**inputs, "total_rewards": total}, reward_range),
        "truth": _variances(group.tokens, advantages, texts["clusters"], context),
        "prompt_end": str(group.rows[0]["prompt"])[-300:],
        "answers": list(frequent_answers(frame.assign(answer=groups.answers, reward=rewards[0]).to_dict("records"))),
    }
    return line, _rows(group, forward, texts)


def _trained_on(frame: pd.DataFrame, rewards: Tensor) -> Tensor:
    """The rewards `[1, G]` that advantages are made of: the weighted sum, where there are several reward functions."""
    if "total_reward" not in frame:
        return rewards
    return torch.tensor(frame["total_reward"].tolist())[None].to(rewards)


def finite_or_none(value: Tensor | float | None) -> float | None:
    """One number for JSON; None if it is missing or not finite."""
    x = math.nan if value is None else float(value)
    return x if math.isfinite(x) else None


@torch.no_grad()
def _forward(context: MeasureContext, tokens: Tokens) -> SharedPrefix:
    return logps_in_chunks(
        context.model,
        *tokens,
        rows_per_chunk=len(tokens.prompt_ids),
        temperature=context.settings.temperature,
        entropies=True,
        hidden_states=True,
    )


def _from_texts(groups: RolloutGroups, context: MeasureContext) -> dict[str, Tensor]:
    """The inputs named in `FROM_TEXT`; clusters and correctness are those of a rollout file if it has them."""
    texts = groups.answers if context.task.meaning == "answer" else groups.completions
    meanings, answers = groups.grouped(texts), groups.grouped(groups.answers)
    given = {name: x for name, x in groups.given().items() if name in ("correct", "clusters")}
    readers = context.readers
    if context.entailment is not None:
        entailment = context.entailment.matrix(meanings)
        rule, threshold = context.settings.cluster_rule, context.settings.entailment_threshold
        clusters = entailment_clusters(entailment, rule, threshold=threshold)
        given |= {"entailment": entailment, "clusters": clusters}
    elif "clusters" in given:
        clusters = given["clusters"]
        readers = Readers(readers.embed, lambda _: clusters, None, readers.judge)
    gold = groups.references()[0]
    references = None if gold is None else [gold]
    missing = [name for name in FROM_TEXT if name not in given]
    inputs = {name: read_input(name, readers, meanings, answers, references) for name in missing}
    unknown = torch.full(groups.rewards.shape, torch.nan, dtype=torch.float64)
    return {"correct": unknown, **given, **{name: x for name, x in inputs.items() if x is not None}}


def _likelihood_signals(
    forward: SharedPrefix, tokens: Tokens, clusters: Tensor, where: Tensor
) -> dict[str, Tensor | None]:
    """Signals from the policy's log-probabilities and token entropies, each `[1]`; none if no rollout has a token."""
    logps, mask = forward.logps.double().cpu()[None], tokens.completion_mask.bool().cpu()[None]
    assert forward.entropies is not None
    entropies = forward.entropies.double().cpu()[None]
    counts = signals.scored(logps, mask) & where
    means = signals.mean_logprob(logps, mask)
    if not bool(counts.any()):
        return {}
    return {
        "token_entropy": signals.group_token_entropy(entropies, mask, where),
        "predictive_entropy": signals.predictive_entropy(logps.sum(-1), counts),
        "mean_logprob": group_mean(means, counts),
        "semantic_entropy": signals.semantic_entropy(clusters, means, counts),
    }


def _semantic_signals(texts: Mapping[str, Tensor], where: Tensor) -> dict[str, Tensor]:
    """Signals from embeddings `[1, G, D]`, clusters `[1, G]` and entailment `[1, G, G, 3]` of the texts, each `[1]`."""
    embeddings, clusters = texts["embeddings"].double(), texts["clusters"]
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    cosine = unit @ unit.mT
    return {
        "semantic_entropy_discrete": signals.semantic_entropy(clusters, where=where),
        "kernel_language_entropy": signals.kernel_language_entropy(texts["entailment"].double(), where=where),
        "semantic_nearest_neighbour_entropy": signals.semantic_nearest_neighbour_entropy(cosine, where=where),
        "self_consistency": signals.self_consistency(clusters, where),
        "cosine_dispersion": signals.cosine_dispersion(embeddings, where),
        "barycentric_transport": signals.barycentric_transport(embeddings, clusters, where),
    }


def _likelihoods(forward: SharedPrefix, tokens: Tokens) -> dict[str, Tensor]:
    """What methods read of the policy's log-probabilities, `[1, G]`; before training it is the reference too."""
    mask = tokens.completion_mask.bool().cpu()[None]
    assert forward.entropies is not None
    means = signals.mean_logprob(forward.logps.double().cpu()[None], mask)
    return {
        "mean_logprob": means,
        "ref_mean_logprob": means,
        "token_entropy": signals.token_entropy(forward.entropies.double().cpu()[None], mask),
        "ratio_variance": torch.zeros_like(means),  # the policy has not moved yet
    }


@torch.no_grad()
def _head_gram(forward: SharedPrefix, tokens: Tokens, context: MeasureContext) -> Tensor | None:
    """`[1, G, G]`; None for a head that is not linear or whose logits are capped."""
    head = find_head(context.model)
    if head.softcap is not None or not isinstance(head.module, nn.Linear) or forward.hidden_states is None:
        return None
    return signals.head_gram_from_weight(
        forward.hidden_states[None],
        head.module.weight,
        tokens.completion_ids[None],
        tokens.completion_mask[None],
        bias=head.module.bias,
        temperature=context.settings.temperature / head.scale,
    ).cpu()


def _block_gram(tokens: Tokens, context: MeasureContext) -> Tensor | None:
    """`[1, G, G]`; None for a model whose last block cannot be run alone, and where V(q) is of the block itself."""
    if context.measured.block:
        return None
    batch, which = _distinct(tokens)
    try:
        gram = block_gram(context.model, batch, temperature=context.settings.temperature).cpu()
    except CalibrantError:
        return None
    return gram[:, which][:, :, which]


def _gradient_signals(gram: Tensor | None, advantages: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Four signals from inner products of gradients, by `names`; none without those."""
    if gram is None:
        return {}
    where = ~advantages.isnan()
    values = (
        signals.head_gradient_variance(gram, advantages),
        signals.head_gradient_variance(gram, torch.ones_like(advantages), where),
        signals.head_gradient_dispersion(gram, where),
        signals.gradient_snr_weight(gram, advantages),
    )
    return dict(zip(names, values, strict=True))


def _variances(
    tokens: Tokens, advantages: Tensor, clusters: Tensor, context: MeasureContext
) -> dict[str, float | None]:
    """V(q) of the parameters, with and without advantages, and their parts within and between clusters."""
    scorable = ~advantages.isnan()
    if int(scorable.sum()) < 2:
        return {}
    gram, finite = _gram(tokens, context)
    where = scorable & finite
    gram, weights = moments.kept(gram, where), torch.where(where, advantages.double(), 0.0)
    norms = moments.squared_norms(gram)
    update = weighted_variance(gram, weights, where, clusters, norms)
    score = weighted_variance(gram, where.double(), where, clusters, norms)
    return {
        "gradient_variance": finite_or_none(update.total),
        "variance_intra": finite_or_none(update.intra),
        "variance_inter": finite_or_none(update.inter),
        "score_variance": finite_or_none(score.total),
        "score_variance_intra": finite_or_none(score.intra),
        "score_variance_inter": finite_or_none(score.inter),
        "mean_norm_squared": finite_or_none(update.mean_norm_squared),
    }


def _gram(tokens: Tokens, context: MeasureContext) -> tuple[Tensor, Tensor]:
    """Inner products of the rollouts' gradients, `[1, G, G]` float64, and which are finite, `[1, G]`."""
    batch, which = _distinct(tokens)
    gram, where = _block_products(batch, context) if context.measured.block else _products(batch, context)
    return gram[:, which][:, :, which], where[:, which]


def _distinct(tokens: Tokens) -> tuple[dict[str, Tensor], Tensor]:
    """The distinct completions as a batch of one group, `[1, D, ...]`, and which of them each rollout is, `[G]`.

    Equal completions have equal gradients: each distinct one passes through the model once.
    """
    completions = torch.where(tokens.completion_mask.bool(), tokens.completion_ids, -1).cpu()
    _, which = completions.unique(dim=0, return_inverse=True)
    first = torch.stack([(which == i).nonzero()[0, 0] for i in range(int(which.max()) + 1)])
    return {name: x[first.to(x.device)][None] for name, x in tokens._asdict().items()}, which


def _products(batch: Mapping[str, Tensor], context: MeasureContext) -> tuple[Tensor, Tensor]:
    """Inner products of the gradients of distinct completions, and which are finite."""
    products = gradient_variance(
        context.model,
        batch,
        torch.ones(batch["prompt_ids"].shape[:2], dtype=torch.float64),
        parameters=context.measured.patterns,
        gram=True,
        temperature=context.settings.temperature,
    )
    assert products.gram is not None
    return products.gram, products.where


def _block_products(batch: Mapping[str, Tensor], context: MeasureContext) -> tuple[Tensor, Tensor]:
    """As `_products`, for the cost of the last block where it can be run alone."""
    try:
        gram = block_gram(context.model, batch, temperature=context.settings.temperature).cpu()
    except CalibrantError:
        return _products(batch, context)
    where = gram.diagonal(dim1=-2, dim2=-1).isfinite()
    return moments.kept(gram, where), where


def _outcome(rewards: Tensor, correct: Tensor) -> str:
    """The kind of a group, one of `names.OUTCOMES`: by reward spread, else by the verdicts if they agree."""
    if bool(has_spread(rewards)):
        return "informative"
    verdicts = correct[~correct.isnan()]
    if len(verdicts) and bool((verdicts == verdicts[0]).all()):
        return "all_right" if bool(verdicts[0]) else "all_wrong"
    return "equal"


def _rows(group: Group, forward: SharedPrefix, texts: Mapping[str, Tensor]) -> list[JsonObject]:
    mask = group.tokens.completion_mask.cpu()
    assert forward.entropies is not None
    logps, entropies = forward.logps.double().cpu().sum(-1), forward.entropies.double().cpu().sum(-1)
    counted = mask.sum(-1)
    return [
        {
            **{name: None if isinstance(x, float) and math.isnan(x) else x for name, x in row.items()},
            "logprob": float(logps[i]) if counted[i] else None,
            "token_entropy": float(entropies[i] / counted[i]) if counted[i] else None,
            "cluster": int(texts["clusters"][0, i]),
        }
        for i, row in enumerate(group.rows)
    ]
