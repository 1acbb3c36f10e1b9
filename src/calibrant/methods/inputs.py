"""What a method may name: the inputs, each with what supplies it."""

from collections.abc import Iterable

from torch import Tensor

from calibrant.checks import check_option
from calibrant.errors import CalibrantError, nearest

SOURCES = {
    "rewards": "the task reward of each rollout",
    "where": "which rollouts count; those with a reward, unless more are excluded",
    "total_rewards": "in training: the weighted sum of all rewards, standardised ones with normalize_then_sum",
    "correct": "verdicts: in training from is_correct and the data column 'references'; in a file the column correct",
    "embeddings": "the texts and an embedding model",
    "clusters": "the texts and an answer key, or an entailment model",
    "entailment": "the texts and an entailment model",
    "empty": "the extracted answers",
    "mean_logprob": "the policy's log-probabilities: in training; in a file the columns logprob and num_tokens",
    "ref_mean_logprob": "the reference model's log-probabilities: in training; in a file ref_logprob and num_tokens",
    "token_entropy": "entropies of the policy's next-token distributions: in training; in a file token_entropy",
    "token_logprobs": "the policy's log-probability of each token, [N, G, T]; in training only",
    "token_entropies": "entropies of the policy's next-token distributions per token, [N, G, T]; in training only",
    "token_log_ratios": "log importance ratios of the current policy to the one that sampled; in training only",
    "answer_confidence": "likelihoods of the answer's tokens under a moving average of the policy; in training only",
    "ratio_variance": "importance ratios of the current policy to the one that sampled; in training only",
    "head_gram": "inner products of the gradients of the policy's output head; in training only",
    "block_gram": "inner products of the gradients of the policy's last block; in training only",
    "state": "what the method returned at the previous step, empty at first",
}
"""Input -> what supplies it."""

HYPERPARAMETERS = {
    "alpha": "strength, at least 0; at 0 every weight is exactly 1",
    "reward_range": "(lowest, highest) task reward",
    "mean_one": "divide the weights by their mean over the batch",
}
"""Hyper-parameter that several methods share -> its description, unless a docstring has its own."""


DEPTHS = ("head", "block")
"""Parts of a policy whose gradients methods read: the output head, or the last block."""

READ_WITH: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "seed_grpo": {"mean_logprob": ("estimator", ("rao", "mc"))},
    "grpo_se": {"mean_logprob": ("mass", ("likelihood",))},
    "eg_spo": {"token_entropy": ("level", ("rollout",)), "token_entropies": ("level", ("token",))},
    "grpo_care": {"answer_confidence": ("form", ("likelihood",)), "clusters": ("form", ("agreement",))},
    **{name: {f"{part}_gram": ("depth", (part,)) for part in DEPTHS} for name in ("gcpo_grad", "gradient_snr")},
}
"""Method -> input that it reads only with some values of a hyper-parameter -> that parameter and these values."""

UNWEIGHTED = frozenset({"grpo", "dr_grpo", "rloo", "empo", "grpo_care", "capo", "gtpo", "kl_cov"})
"""Methods whose weights are all 1: their advantages are their own."""


TOKEN_INPUTS = ("token_logprobs", "token_entropies", "token_log_ratios")
"""Inputs per token, `[N, G, T]`, NaN where a rollout has no token."""


def missing_input(caller: str, names: Iterable[str], purpose: str = "") -> CalibrantError:
    """The error, to be raised, of a method or command that lacks inputs: which they are and what supplies them.

    >>> missing_input("empo", ["empty"])
    CalibrantError("empo needs the input 'empty' (the extracted answers)")
    >>> missing_input("my_method", ["embedings"])  # doctest: +ELLIPSIS
    CalibrantError("my_method names the input 'embedings', which nothing supplies (did you mean 'embeddings'?); ...
    """
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        hint = nearest(unknown[0], SOURCES)
        return CalibrantError(
            f"{caller} names the input '{unknown[0]}', which nothing supplies{hint}; a method may name "
            f"{', '.join(SOURCES)}"
        )
    wanted = " and ".join(f"'{name}' ({SOURCES[name]})" for name in names)
    return CalibrantError(f"{caller} needs the input {wanted}{purpose}")


def gram_at(caller: str, depth: str, head_gram: Tensor | None, block_gram: Tensor | None) -> Tensor:
    """Inner products of the rollouts' gradients, `[N, G, G]`, of the output head or of the last block."""
    check_option(caller, DEPTHS, depth=depth)
    gram = head_gram if depth == "head" else block_gram
    if gram is None:
        raise missing_input(caller, [f"{depth}_gram"])
    return gram
