"""GCPO and its ablations: the dispersion of answers damps the update of a group, that of rewards boosts it."""

from collections.abc import Sequence

from torch import Tensor

from calibrant.checks import check_shapes
from calibrant.groups import valid
from calibrant.methods.inputs import gram_at
from calibrant.methods.outcome import Outcome, weighed
from calibrant.signals import barycentric_transport, cosine_dispersion, head_gradient_dispersion, reward_dispersion
from calibrant.weights import boost, damp, group_alpha


def rd_only(
    rewards: Tensor,
    where: Tensor | None,
    *,
    alpha: float = 0.6,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """GCPO without geometry (its ablation): groups whose rewards differ more get larger updates.

    `A~_i = A_i (1 + alpha_G RD)`, `alpha_G = alpha / ln n`.

    Scores: reward_dispersion, reward_weight (in [1, 1 + alpha_G])
    Paper: GCPO (arXiv:2605.21801), equation 11 and section 4.4
    Per: prompt
    Effect: x [1, 1.22] at 16 rollouts per prompt
    Certainty: (b)
    When: there are no embeddings, or to see the effect of reward dispersion alone. With binary rewards, prompts that
        are solved half of the time have the largest weight.

    >>> import torch
    >>> rd_only(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), None).weights[0, 0]  # 1 + 0.6 / ln 4 * 0.75
    tensor(1.3246)
    """
    check_shapes("rd_only", rewards=(rewards, "N G"), where=(where, "N G"))
    where = valid(rewards, where)
    dispersion = reward_dispersion(rewards.double(), reward_range, where)
    weight = boost(dispersion, group_alpha(alpha, where.sum(-1)))
    scores = {"reward_dispersion": dispersion, "reward_weight": weight}
    return weighed(rewards, where, weight, scores, mean_one=mean_one, signals={"reward_dispersion": 1})


def gcpo_cd(
    rewards: Tensor,
    embeddings: Tensor,
    where: Tensor | None,
    *,
    alpha: float = 0.6,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """GCPO with cosine dispersion: damps groups whose answers disagree, boosts groups whose rewards differ.

    `A~_i = A_i * clip(1 - alpha_G CD^2, 0, 1) * (1 + alpha_G RD)`, `alpha_G = alpha / ln n`.

    Args:
        embeddings: `[N, G, D]`, of the answers (question answering) or the whole completions (mathematics).

    Scores: cosine_dispersion, reward_dispersion, geometric_weight (in [0.81, 1] for G = 16 and alpha = 0.6),
        reward_weight (in [1, 1.22])
    Paper: GCPO (arXiv:2605.21801), equations 7, 8 and 11
    Per: prompt
    Effect: x [0.81, 1] then x [1, 1.22] at 16 rollouts per prompt
    Certainty: (b)
    When: answers that lie apart in meaning mark a prompt whose gradient is noisy, and wording counts as meaning; no
        clusters are needed. Not where right answers may be worded in many ways.

    >>> import torch
    >>> e = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    >>> gcpo_cd(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), e, None).scores["geometric_weight"]  # 1 - 0.4328 * 0.375^2
    tensor([0.9391])
    """
    check_shapes("gcpo_cd", rewards=(rewards, "N G"), embeddings=(embeddings, "N G D"), where=(where, "N G"))
    where = valid(rewards, where)
    uncertainty = cosine_dispersion(embeddings, where).double()
    return _gcpo("cosine_dispersion", uncertainty, rewards, where, alpha, reward_range, mean_one)


def gcpo_bot(
    rewards: Tensor,
    embeddings: Tensor,
    clusters: Tensor,
    where: Tensor | None,
    *,
    alpha: float = 0.6,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """GCPO with barycentric transport: damps groups whose meanings lie apart, boosts groups whose rewards differ.

    `A~_i = A_i * clip(1 - alpha_G BoT^2, 0, 1) * (1 + alpha_G RD)`, `alpha_G = alpha / ln n`.

    Args:
        embeddings: `[N, G, D]`, of the answers (question answering) or the whole completions (mathematics).

    Scores: barycentric_transport, reward_dispersion, geometric_weight (in [0.946, 1] for G = 16 and alpha = 0.6),
        reward_weight (in [1, 1.22])
    Paper: GCPO (arXiv:2605.21801), equations 9 to 11
    Per: prompt
    Effect: x [0.946, 1] then x [1, 1.22] at 16 rollouts per prompt
    Certainty: (b)
    When: the default, for tasks whose answers can be clustered by meaning. Its damping is weak by design: most of the
        effect is the boost by reward dispersion.

    >>> import torch
    >>> e = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    >>> outcome = gcpo_bot(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), e, torch.tensor([[0, 0, 1, 1]]), None)
    >>> outcome.scores["barycentric_transport"], outcome.weights[0, 0]  # weight 0.99614 * 1.32461
    (tensor([0.0944]), tensor(1.3195))
    """
    inputs = {"rewards": (rewards, "N G"), "embeddings": (embeddings, "N G D"), "clusters": (clusters, "N G")}
    check_shapes("gcpo_bot", **inputs, where=(where, "N G"))
    where = valid(rewards, where)
    uncertainty = barycentric_transport(embeddings, clusters, where).double()
    return _gcpo("barycentric_transport", uncertainty, rewards, where, alpha, reward_range, mean_one)


def gcpo_grad(
    rewards: Tensor,
    head_gram: Tensor | None,
    where: Tensor | None,
    block_gram: Tensor | None = None,
    *,
    depth: str = "head",
    alpha: float = 0.6,
    reward_range: Sequence[float] = (0.0, 2.0),
    mean_one: bool = False,
) -> Outcome:
    """GCPO with the dispersion of the policy's own gradients: damps groups whose gradients disagree.

    `A~_i = A_i * clip(1 - alpha_G GD^2, 0, 1) * (1 + alpha_G RD)`, `alpha_G = alpha / ln n`,
    `GD = 1 - |1/n sum_i g_i|^2 / (1/n sum_i |g_i|^2)` of the gradients of the output head, or of the last block.
    Derived in docs/theory.md.

    Args:
        head_gram: `[N, G, G]`, inner products of the rollouts' gradients of the output head; rollouts whose squared
            norm is not finite are left out of the dispersion. Read with `depth="head"` only.
        block_gram: the same of the last block. Read with `depth="block"` only.
        depth: "head", or "block", whose gradients cost more and follow those of the whole model more closely on the
            embedded policies, not on SmolLM2-135M.

    Scores: gradient_dispersion, reward_dispersion, geometric_weight (in [0.78, 1] for G = 16 and alpha = 0.6),
        reward_weight (in [1, 1.22])
    Paper: none, ours; equations 8 and 11 of GCPO (arXiv:2605.21801), of another dispersion
    Per: prompt
    Effect: x [0.78, 1] then x [1, 1.22] at 16 rollouts per prompt
    Certainty: (c) ours: the weights are GCPO's (b), the dispersion in them is not
    When: embeddings say little about the answers (numbers, code, short lists), or there are none; it measures directly
        what GCPO's dispersions are a proxy of. It is near 1 in most groups, so weights differ little between them.

    >>> import torch
    >>> gram = torch.eye(4)[None]  # four gradients at right angles: GD = 1 - 1/4
    >>> gcpo_grad(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), gram, None).scores["geometric_weight"]  # 1 - 0.4328 * 0.75^2
    tensor([0.7565])
    """
    gram = gram_at("gcpo_grad", depth, head_gram, block_gram)
    check_shapes("gcpo_grad", rewards=(rewards, "N G"), **{f"{depth}_gram": (gram, "N G G")}, where=(where, "N G"))
    where = valid(rewards, where)
    uncertainty = head_gradient_dispersion(gram, where).double()
    return _gcpo("gradient_dispersion", uncertainty, rewards, where, alpha, reward_range, mean_one)


def _gcpo(
    name: str, u: Tensor, rewards: Tensor, where: Tensor, alpha: float, reward_range: Sequence[float], mean_one: bool
) -> Outcome:
    """The product of a damping weight of an uncertainty u, `[N]` float64, and the boost of reward dispersion."""
    strength = group_alpha(alpha, where.sum(-1))
    dispersion = reward_dispersion(rewards.double(), reward_range, where)
    scores = {
        name: u,
        "reward_dispersion": dispersion,
        "geometric_weight": damp(u, strength),
        "reward_weight": boost(dispersion, strength),
    }
    weight = scores["geometric_weight"] * scores["reward_weight"]
    return weighed(rewards, where, weight, scores, mean_one=mean_one, signals={name: -1, "reward_dispersion": 1})
