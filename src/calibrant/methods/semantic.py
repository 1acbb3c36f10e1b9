"""Methods that damp a prompt by the entropy of its answers' meanings."""

from typing import Any

import torch
from torch import Tensor

from calibrant.checks import check_grouped, check_non_negative, check_option, check_shapes, check_share
from calibrant.groups import valid
from calibrant.methods.inputs import missing_input
from calibrant.methods.outcome import Outcome, weighed
from calibrant.signals import kernel_language_entropy, semantic_entropy
from calibrant.signals.entropy import check_labels
from calibrant.weights import damp, group_alpha

FORMS = {"reciprocal": 0.0417, "linear": 0.02, "exponential": 0.02, "focal": 0.02}
"""SEED-GRPO's forms of a weight, each with its default strength."""

SHAPES = FORMS | {"damp": 0.6}
"""Shape of a weight -> its default strength: SEED-GRPO's forms, and GCPO's."""

PUBLISHED_TIME = 0.3  # of the heat kernel, as the authors of kernel language entropy report it

ROUNDING = 1e-12  # an uncertainty at most this far from 1 counts as 1: at 1 the focal form falls to 0 at once


def grpo_se(
    rewards: Tensor,
    clusters: Tensor,
    where: Tensor | None,
    mean_logprob: Tensor | None = None,
    *,
    alpha: float | None = None,
    shape: str = "reciprocal",
    mass: str = "count",
    estimator: str = "rao",
    mean_one: bool = False,
) -> Outcome:
    """GRPO damped by semantic entropy: prompts whose answers have many meanings get smaller updates.

    With SE the semantic entropy of the group and `u = clip(SE / ln n, 0, 1)`: `A~_i = A_i w`, and w by shape, those of
    SEED-GRPO: "reciprocal" `1 / (1 + alpha u)`, "linear" `clip(1 - alpha u, 0, 1)`, "exponential" `exp(-alpha u)`,
    "focal" `(1 - u)^alpha`; or that of GCPO's own weights: "damp" `clip(1 - alpha_G u^2, 0, 1)`,
    `alpha_G = alpha / ln n`.

    Args:
        mean_logprob: length-normalised log-likelihoods, read with `mass="likelihood"` only.
        alpha: strength, at least 0; None: that of the shape, 0.0417 for "reciprocal", 0.6 for "damp", 0.02 for the
            others. At 0 every weight is exactly 1.
        shape: of the weight as a function of u: "reciprocal", "linear", "exponential", "focal" or "damp".
        mass: probabilities of the rollouts: "count", equal ones, or "likelihood", the softmax of `mean_logprob` over
            the rollouts of the group that have one.
        estimator: "rao", Shannon's entropy over clusters, or "mc", the mean of `-ln P_k` over clusters k.

    Scores: semantic_entropy (nats), normalised_entropy (u), entropy_weight
    Paper: GRPO+SE, a baseline of GCPO (arXiv:2605.21801, section 4.3 and appendix E.2); semantic entropy of Kuhn, Gal
        and Farquhar
    Per: prompt
    Effect: x [0.96, 1]; with the shape "damp" 0.784 to 1 at 16 rollouts per prompt
    Certainty: (b) that it is only the core semantic entropy mechanism of SEED-GRPO; (a*) the reciprocal shape and
        0.0417, from readers of SEED-GRPO's released code; other shapes and strengths are interpretations (c)
    When: as the comparison for GCPO: it sees how many meanings there are, not how far apart they lie.

    >>> outcome = grpo_se(torch.tensor([[2.0, 0.0, 0.0, 1.0]]), torch.tensor([[0, 0, 1, 2]]), None)
    >>> outcome.scores["normalised_entropy"], outcome.weights[0, 0]  # 1 / (1 + 0.0417 * 0.75)
    (tensor([0.7500]), tensor(0.9697))
    """
    check_grouped("grpo_se", rewards=rewards, where=where, clusters=clusters, mean_logprob=mean_logprob)
    check_option("grpo_se", tuple(SHAPES), shape=shape)
    where = valid(rewards, where)
    log_mass = _log_mass("grpo_se", mass, mean_logprob)
    entropy, u = _normalised(clusters, log_mass, where, estimator)
    weight = _shaped("grpo_se", shape, u, alpha, where.sum(-1))
    scores = {"semantic_entropy": entropy, "normalised_entropy": u, "entropy_weight": weight}
    return weighed(rewards, where, weight, scores, mean_one=mean_one, signals={"normalised_entropy": -1})


def grpo_kle(
    rewards: Tensor,
    entailment: Tensor,
    where: Tensor | None,
    clusters: Tensor | None = None,
    mean_logprob: Tensor | None = None,
    *,
    alpha: float | None = None,
    kernel: str = "heat",
    t: float | str | None = None,
    kappa: float = 1.0,
    nu: float = 1.0,
    shape: str = "damp",
    mix: float | None = None,
    mass: str = "count",
    mean_one: bool = False,
) -> Outcome:
    """GRPO damped by kernel language entropy: prompts whose answers do not entail each other get smaller updates.

    `u = clip((VNE - V_same) / (ln n - V_same), 0, 1)`, with VNE the von Neumann entropy of a kernel on the graph of
    entailment and V_same that of answers that all entail each other; ln n is that of answers that all contradict. The
    weight is that of `grpo_se`: `w = clip(1 - alpha_G u^2, 0, 1)`, `alpha_G = alpha / ln n`, or a shape of SEED-GRPO.
    `A~_i = A_i w`.

    Args:
        entailment: `[N, G, G, 3]`, probabilities of (contradiction, neutral, entailment), premise first; a pair of
            which one direction is not finite has no link, so that an empty answer stands alone.
        clusters: read with `mix` only.
        mean_logprob: length-normalised log-likelihoods, read with `mix` and `mass="likelihood"` only.
        kernel: "heat" or "matern".
        alpha: strength, at least 0; None: that of the shape, 0.6 for "damp", 0.0417 for "reciprocal", 0.02 for the
            others. At 0 every weight is exactly 1.
        t: time of the heat kernel, above 0; "published": 0.3, which the authors report for 10 answers; None:
            0.3 * 10 / n, so that groups of all sizes compare. At n = 16, before the scaling to u, answers that are all
            neutral to each other have 0.232 ln n with "published" and 0.664 ln n with None, answers that all
            entail each other 0.004 ln n and 0.091 ln n, and answers that all contradict ln n.
        kappa: length scale of the Matern kernel, above 0.
        nu: smoothness of the Matern kernel, above 0.
        shape: "damp", "reciprocal", "linear", "exponential" or "focal".
        mix: weight of the entailment kernel in a mixture with the kernel of the clusters, in [0, 1]; None: no mixture.
        mass: probability mass of the clusters in the mixture, "count" or "likelihood", as in `grpo_se`.

    Scores: kernel_entropy (u, in [0, 1]), entropy_weight
    Paper: GRPO+KLE, a baseline of GCPO (arXiv:2605.21801, appendix E.2); kernel language entropy of Nikitin et al.
        (arXiv:2405.20003)
    Per: prompt
    Effect: x [0.784, 1] at 16 rollouts per prompt
    Certainty: (a) the entropy; its scale and the map to a weight are an interpretation (c)
    When: an entailment model is available, and answers agree by degrees, so that hard clusters would be arbitrary. It
        takes up to G (G - 1) pairs of texts through that model per prompt.

    >>> apart, same = torch.eye(3)[[0, 2], None, None].expand(2, 4, 4, 3)
    >>> grpo_kle(torch.tensor([[2.0, 0.0, 0.0, 1.0]] * 2), torch.stack([apart, same]), None).weights[:, 0]
    tensor([0.5672, 1.0000])
    """
    check_grouped("grpo_kle", rewards=rewards, where=where, clusters=clusters, mean_logprob=mean_logprob)
    check_shapes("grpo_kle", rewards=(rewards, "N G"), entailment=(entailment, "N G G L"))
    check_labels("grpo_kle", entailment)
    check_option("grpo_kle", tuple(SHAPES), shape=shape)
    if isinstance(t, str):
        check_option("grpo_kle", ("published",), t=t)
        t = PUBLISHED_TIME
    where = valid(rewards, where)
    mixture: dict[str, Any] = {}
    if mix is not None:
        check_share("grpo_kle", mix=mix)
        if clusters is None:
            raise missing_input("grpo_kle", ["clusters"], " with mix")
        mixture = {"clusters": clusters, "alpha": mix, "log_mass": _log_mass("grpo_kle", mass, mean_logprob)}
    graph = _without_empty(entailment)
    u = kernel_language_entropy(graph, kernel, where, t=t, kappa=kappa, nu=nu, rescale=True, **mixture)
    weight = _shaped("grpo_kle", shape, u, alpha, where.sum(-1))
    scores = {"kernel_entropy": u, "entropy_weight": weight}
    return weighed(rewards, where, weight, scores, mean_one=mean_one, signals={"kernel_entropy": -1})


def seed_grpo(
    rewards: Tensor,
    clusters: Tensor,
    where: Tensor | None,
    mean_logprob: Tensor | None = None,
    *,
    form: str = "reciprocal",
    alpha: float | None = None,
    estimator: str = "rao",
    mean_one: bool = False,
) -> Outcome:
    """SEED-GRPO: centred advantages, reduced for prompts whose answers have many meanings.

    `A~_i = (r_i - mean) f(u)`, `u = clip(SE / ln n, 0, 1)`, with f one of "reciprocal" `1 / (1 + alpha u)`, "linear"
    `clip(1 - alpha u, 0, 1)`, "exponential" `exp(-alpha u)`, "focal" `(1 - u)^alpha`.

    Args:
        mean_logprob: length-normalised log-likelihoods; estimators "rao" and "mc" need it, and leave rollouts without
            one out of the entropy.
        form: "reciprocal" as in the released code, or "linear", "exponential", "focal".
        alpha: strength, at least 0; None: 0.0417 for "reciprocal", 0.02 for the others. 0 gives Dr. GRPO, bit for bit.
        estimator: "rao", Shannon's entropy of likelihood-weighted meanings, as in the released code; "freq", the
            same of counted ones; "mc", the paper's equation 5, which ln n does not bound.

    Scores: semantic_entropy (nats), normalised_entropy (u), entropy_weight
    Paper: SEED-GRPO (arXiv:2505.12346)
    Per: prompt
    Effect: x [0.96, 1]
    Certainty: (b) the paper, which never defines f; (a*) the reciprocal form and 0.0417, from readers of the
        released code; the other forms at 0.02 are an interpretation (c)
    When: to reproduce SEED-GRPO. At the default strength the effect is below the noise between runs; try alpha from
        0.5 to 1 to see any.

    >>> outcome = seed_grpo(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), torch.tensor([[0, 0, 1, 2]]), None, estimator="freq")
    >>> outcome.weights[0, 0], outcome.base  # 1 / (1 + 0.0417 * 0.75)
    (tensor(0.9697), 'centred')
    """
    check_grouped("seed_grpo", rewards=rewards, where=where, clusters=clusters, mean_logprob=mean_logprob)
    check_option("seed_grpo", tuple(FORMS), form=form)
    check_option("seed_grpo", ("rao", "freq", "mc"), estimator=estimator)
    where = valid(rewards, where)
    if estimator != "freq" and mean_logprob is None:
        raise missing_input("seed_grpo", ["mean_logprob"], f" for estimator='{estimator}'; estimator='freq' does not")
    log_mass, kind = (None, "rao") if estimator == "freq" else (mean_logprob, estimator)
    entropy, u = _normalised(clusters, log_mass, where, kind)
    weight = _shaped("seed_grpo", form, u, alpha, where.sum(-1))
    scores = {"semantic_entropy": entropy, "normalised_entropy": u, "entropy_weight": weight}
    signals = {"normalised_entropy": -1}
    return weighed(rewards, where, weight, scores, mean_one=mean_one, base="centred", signals=signals)


def _log_mass(caller: str, mass: str, mean_logprob: Tensor | None) -> Tensor | None:
    check_option(caller, ("count", "likelihood"), mass=mass)
    if mass == "likelihood" and mean_logprob is None:
        raise missing_input(caller, ["mean_logprob"], " for mass='likelihood'")
    return mean_logprob if mass == "likelihood" else None


def _without_empty(entailment: Tensor) -> Tensor:
    """Probabilities in float64; a pair with an unknown direction is set to contradiction, which is no link."""
    finite = torch.isfinite(entailment).all(-1)
    finite = finite & finite.transpose(-1, -2)
    contradiction = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device=entailment.device)
    return torch.where(finite[..., None], entailment.double(), contradiction)


def _normalised(clusters: Tensor, log_mass: Tensor | None, where: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """Semantic entropy, `[N]` nats in float64, and that over the logarithm of the number of rollouts, in [0, 1]."""
    if log_mass is None:
        log_mass = torch.zeros(clusters.shape, dtype=torch.float64, device=clusters.device)
    entropy = semantic_entropy(clusters, log_mass.double(), where, estimator=estimator)
    count = (where & torch.isfinite(log_mass)).sum(-1)
    highest = count.clamp(min=2).double().log()
    return entropy, torch.where(count >= 2, (entropy / highest).clamp(0.0, 1.0), 0.0)


def _shaped(caller: str, shape: str, u: Tensor, alpha: float | None, count: Tensor) -> Tensor:
    alpha = SHAPES[shape] if alpha is None else alpha
    check_non_negative(caller, alpha=alpha)
    u = torch.where(u > 1.0 - ROUNDING, 1.0, u)
    if shape == "damp":
        return damp(u, group_alpha(alpha, count))
    if shape == "reciprocal":
        return 1.0 / (1.0 + alpha * u)
    if shape == "linear":
        return (1.0 - alpha * u).clamp(min=0.0)
    return torch.exp(-alpha * u) if shape == "exponential" else (1.0 - u) ** alpha
