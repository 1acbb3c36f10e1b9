"""Whether right answers have the higher confidence: the area under the ROC curve of correctness."""

import torch
from torch import Tensor

from calibrant.calibration.answers import by_confidence, counted_answers, flat_answers, over_weights
from calibrant.checks import check_option
from calibrant.groups import like_input
from calibrant.statistics.ranks import take, won_pairs
from calibrant.statistics.retrieval import pair_share


def correctness_auc(
    confidence: Tensor,
    correct: Tensor,
    where: Tensor | None = None,
    *,
    pooling: str = "pooled",
    prompt_weights: Tensor | None = None,
    undefined: float = 0.5,
) -> Tensor:
    """How often a right answer has a higher confidence than a wrong one.

    `AUC = P(c_right > c_wrong) + 0.5 P(c_right = c_wrong)`, over all pairs of a right and a wrong answer ("pooled"),
    or over the pairs within each prompt, then the mean over prompts that have both ("per_prompt"). Only the order
    of the confidences matters: 1 for a perfect order, 0.5 for none, 0 for the reverse. Exact, ties included, in
    O(n log n).

    Args:
        confidence: `[N, G]`, larger means more certain, e.g. `mean_logprob`; infinities are first and last.
        pooling: "pooled" or "per_prompt".
        undefined: the value where there is no pair; NaN marks such a result, and leaves it out of an interval.

    Reference: CAPO, relative calibration (b). Its pooling is not stated: pooled over a benchmark, and then the mean
    over benchmarks, is an interpretation (c).

    >>> correctness_auc(torch.tensor([[-0.5, -0.2, -0.9, -0.1]]), torch.tensor([[1, 1, 0, 0]]))
    tensor(0.5000)
    """
    check_option("correctness_auc", ("pooled", "per_prompt"), pooling=pooling)
    area = (_pooled if pooling == "pooled" else _per_prompt)(confidence, correct, where, prompt_weights)
    result = like_input(area, confidence)
    return torch.where(area.isnan(), torch.full_like(result, undefined), result)


def _pooled(confidence: Tensor, correct: Tensor, where: Tensor | None, prompt_weights: Tensor | None) -> Tensor:
    answers = by_confidence(flat_answers("correctness_auc", confidence, correct, where))
    right = answers.right.double()

    def area(weights: Tensor) -> Tensor:
        weights = take(weights, answers.prompt)
        positive = weights * right
        negative = weights - positive
        return won_pairs(answers.confidence, positive, negative) / (positive.sum(-1) * negative.sum(-1))

    return over_weights("correctness_auc", prompt_weights, confidence, area, len(answers.prompt))


def _per_prompt(confidence: Tensor, correct: Tensor, where: Tensor | None, prompt_weights: Tensor | None) -> Tensor:
    mask, right = counted_answers("correctness_auc", correct, where, confidence=confidence)
    areas = pair_share(confidence, right, mask)
    defined, areas = (~areas.isnan()).double(), areas.nan_to_num(0.0)

    def mean(weights: Tensor) -> Tensor:
        return (weights @ areas) / (weights @ defined)

    return over_weights("correctness_auc", prompt_weights, confidence, mean)
