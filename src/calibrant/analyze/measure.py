"""Everything that is measured of one group: each signal, and the exact gradient variance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from calibrant import signals
from calibrant.advantages import standardised
from calibrant.analyze.groups import Group, texts_shown
from calibrant.gradients import gradient_variance
from calibrant.groups import group_mean, has_spread, valid
from calibrant.policy import SharedPrefix, logps_in_chunks
from calibrant.policy.generation import Tokens
from calibrant.policy.head import find_head
from calibrant.report.names import SIGNALS
from calibrant.rollouts import RolloutGroups
from calibrant.signals import moments
from calibrant.signals.clusters import entailment_clusters
from calibrant.tasks.base import Task
from calibrant.text.entail import EntailmentJudge
from calibrant.text.inputs import FROM_TEXT, Readers, read


@dataclass(frozen=True)
class Instruments:
    """What a group is measured with.

    Attributes:
        model: the policy whose gradients are meant.
        task: reads answers and says what reward is possible.
        readers: embeddings and clusters of texts.
        entailment: the model that says which answers mean the same, or None: equal keys then.
        cluster_rule, entailment_threshold: how entailment makes clusters.
        temperature: of sampling; logits are divided by it, as a trainer does.
        parameters: those that V(q) is of; all trainable ones when None.
    """

    model: Any
    task: Task
    readers: Readers
    entailment: EntailmentJudge | None
    cluster_rule: str
    entailment_threshold: float
    temperature: float
    parameters: tuple[str, ...] | None


def measured(index: int, group: Group, tools: Instruments) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measures one group, alone in its batch, so that the numbers do not depend on what was measured beside it.

    Args:
        index: the number of the group.
        group: its rollouts.
        tools: what it is measured with.

    Returns:
        A line of `groups.jsonl`, and the rows of the group with log-probabilities, token entropies and clusters.
    """
    frame = pd.DataFrame(group.rows)
    groups = RolloutGroups(frame, tools.task.extract)
    rewards, where = groups.rewards, valid(groups.rewards)
    forward = _forward(tools, group.tokens)
    texts = _from_texts(groups, tools)
    correct = torch.where(where, texts["correct"], torch.nan)
    advantages = torch.where(where, standardised(rewards), torch.nan)
    reward_range = tools.task.reward_range if "reward" in frame else (0.0, 1.0)
    found = {
        **_of_likelihoods(forward, group.tokens, texts["clusters"], where),
        **_of_meanings(texts, where),
        "reward_dispersion": signals.reward_dispersion(rewards, reward_range),
        "reward_mean": group_mean(rewards) if bool(where.any()) else None,
        **_of_head(forward, group.tokens, advantages, tools),
    }
    line = {
        "index": index,
        "prompt_id": str(group.rows[0]["prompt_id"]),
        "rollouts": len(group.rows),
        "scorable": int(where.sum()),
        "clusters": int(texts["clusters"][where].unique().numel()),
        "outcome": _outcome(rewards, correct),
        "success_rate": number(correct.nanmean()),
        "signals": {name: number(found.get(name)) for name in SIGNALS},
        "truth": _truth(group.tokens, advantages, texts["clusters"], tools),
        "prompt_end": str(group.rows[0]["prompt"])[-300:],
        "answers": list(texts_shown(frame.assign(answer=groups.answers, reward=rewards[0]).to_dict("records"))),
    }
    return line, _rows(group, forward, texts)


def number(value: Tensor | float | None) -> float | None:
    """A tensor of one number as JSON has it: None where it is missing or not finite."""
    x = math.nan if value is None else float(value)
    return x if math.isfinite(x) else None


@torch.no_grad()
def _forward(tools: Instruments, tokens: Tokens) -> SharedPrefix:
    """Log-probabilities, entropies and the states before the head, from one pass."""
    return logps_in_chunks(
        tools.model,
        *tokens,
        rows_per_chunk=len(tokens.prompt_ids),
        temperature=tools.temperature,
        entropies=True,
        hidden_states=True,
    )


def _from_texts(groups: RolloutGroups, tools: Instruments) -> dict[str, Tensor]:
    """Embeddings, clusters, entailment, which answers are empty, which are correct; a file's own where it has them."""
    texts = groups.answers if tools.task.meaning == "answer" else groups.completions
    meanings, answers = groups.grouped(texts), groups.grouped(groups.answers)
    known = {name: x for name, x in groups.given().items() if name in ("correct", "clusters")}
    readers = tools.readers
    if tools.entailment is not None:
        entailment = tools.entailment.matrix(meanings)
        known |= {"entailment": entailment, "clusters": _clusters(entailment, tools)}
    elif "clusters" in known:
        clusters = known["clusters"]
        readers = Readers(readers.embed, lambda _: clusters, None, readers.judge)
    gold = groups.references()[0]
    wanted = [name for name in FROM_TEXT if name not in known]
    inputs = {name: read(name, readers, meanings, answers, None if gold is None else [gold]) for name in wanted}
    unknown = torch.full(groups.rewards.shape, torch.nan, dtype=torch.float64)
    return {"correct": unknown, **known, **{name: x for name, x in inputs.items() if x is not None}}


def _clusters(entailment: Tensor, tools: Instruments) -> Tensor:
    return entailment_clusters(entailment, tools.cluster_rule, threshold=tools.entailment_threshold)


def _of_likelihoods(forward: SharedPrefix, tokens: Tokens, clusters: Tensor, where: Tensor) -> dict[str, Tensor | None]:
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


def _of_meanings(texts: Mapping[str, Tensor], where: Tensor) -> dict[str, Tensor]:
    embeddings, clusters = texts["embeddings"].double(), texts["clusters"]
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    return {
        "semantic_entropy_discrete": signals.semantic_entropy(clusters, where=where).double(),
        "kernel_language_entropy": signals.kernel_language_entropy(texts["entailment"].double(), where=where),
        "semantic_nearest_neighbour_entropy": signals.semantic_nearest_neighbour_entropy(unit @ unit.mT, where=where),
        "self_consistency": signals.self_consistency(clusters, where),
        "cosine_dispersion": signals.cosine_dispersion(embeddings, where),
        "barycentric_transport": signals.barycentric_transport(embeddings, clusters, where),
    }


@torch.no_grad()
def _of_head(forward: SharedPrefix, tokens: Tokens, advantages: Tensor, tools: Instruments) -> dict[str, Tensor | None]:
    """What the gradients of the output head say; nothing for a head whose logits are capped or that is not linear."""
    head = find_head(tools.model)
    if head.softcap is not None or not isinstance(head.module, nn.Linear) or forward.hidden_states is None:
        return {}
    gram = signals.head_gram_from_weight(
        forward.hidden_states[None],
        head.module.weight,
        tokens.completion_ids[None],
        tokens.completion_mask[None],
        bias=head.module.bias,
        temperature=tools.temperature / head.scale,
    ).cpu()
    where = ~advantages.isnan()
    return {
        "head_gradient_variance": signals.head_gradient_variance(gram, advantages),
        "head_score_variance": signals.head_gradient_variance(gram, torch.ones_like(advantages), where),
        "head_gradient_dispersion": signals.head_gradient_dispersion(gram, where),
        "gradient_snr_weight": signals.gradient_snr_weight(gram, advantages),
    }


def _truth(tokens: Tokens, advantages: Tensor, clusters: Tensor, tools: Instruments) -> dict[str, float | None]:
    """V(q) of the parameters, exactly, its value without advantages, and their shares within and between clusters."""
    scorable = ~advantages.isnan()
    if int(scorable.sum()) < 2:
        return {}
    gram, finite = _gram(tokens, tools)
    where = scorable & finite
    update = _spread(gram, advantages, where, clusters)
    score = _spread(gram, torch.ones_like(advantages), where, clusters)
    return {
        "gradient_variance": update["variance"],
        "variance_intra": update["intra"],
        "variance_inter": update["inter"],
        "score_variance": score["variance"],
        "score_variance_intra": score["intra"],
        "score_variance_inter": score["inter"],
        "mean_norm_squared": update["norm"],
    }


def _gram(tokens: Tokens, tools: Instruments) -> tuple[Tensor, Tensor]:
    """Inner products of the rollouts' gradients, `[1, G, G]` float64, and which are finite, `[1, G]`.

    Equal completions of one prompt have one gradient: each distinct one goes through the model once.
    """
    written = torch.where(tokens.completion_mask.bool(), tokens.completion_ids, -1).cpu()
    _, which = written.unique(dim=0, return_inverse=True)
    first = torch.stack([(which == i).nonzero()[0, 0] for i in range(int(which.max()) + 1)])
    batch = {name: x[first.to(x.device)] for name, x in tokens._asdict().items()}
    found = gradient_variance(
        tools.model,
        batch,
        torch.ones(1, len(first), dtype=torch.float64),
        parameters=tools.parameters,
        gram=True,
        temperature=tools.temperature,
    )
    assert found.gram is not None
    return found.gram[:, which][:, :, which], found.where[:, which]


def _spread(gram: Tensor, weights: Tensor, where: Tensor, clusters: Tensor) -> dict[str, float | None]:
    """Of `a_i = w_i g_i`: `1/n sum_i |a_i - mean a|^2`, its parts within and between clusters, and `|mean a|^2`."""
    kept = moments.kept(gram, where)
    products, n = moments.weighted(kept, torch.where(where, weights.double(), 0.0)), moments.count(where)
    total = moments.gram_variance(products, n)
    between = moments.between_clusters(products, clusters, where)
    return {
        "variance": number(total),
        "intra": number((total - between).clamp(min=0.0)),
        "inter": number(between),
        "norm": number((products.sum((-2, -1)) / n**2).clamp(min=0.0)),
    }


def _outcome(rewards: Tensor, correct: Tensor) -> str:
    if bool(has_spread(rewards)):
        return "informative"
    known = correct[~correct.isnan()]
    if len(known) and bool((known == known[0]).all()):
        return "all_right" if bool(known[0]) else "all_wrong"
    return "equal"


def _rows(group: Group, forward: SharedPrefix, texts: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The rows of a rollout file with what the model said of them."""
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
