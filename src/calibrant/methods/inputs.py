"""What a method may name: the inputs, each with what supplies it."""

from collections.abc import Iterable

from calibrant.errors import CalibrantError, nearest

SOURCES = {
    "rewards": "the task reward of each rollout",
    "where": "which rollouts count; those with a reward, unless more are excluded",
    "total_rewards": "the weighted sum of all reward functions, each standardised first with normalize_then_sum: "
    "training has it",
    "correct": "training knows it with is_correct and a column 'references' in the data; in a rollout file the column "
    "correct",
    "embeddings": "the texts and an embedding model",
    "clusters": "the texts and an answer key, or an entailment model",
    "entailment": "the texts and an entailment model",
    "empty": "the extracted answers",
    "mean_logprob": "the policy's log-probabilities: training computes them; in a rollout file the columns logprob "
    "and num_tokens",
    "ref_mean_logprob": "the log-probabilities of a frozen reference: training computes them; in a rollout file the "
    "columns ref_logprob and num_tokens",
    "token_entropy": "the entropies of the policy's next-token distributions: training computes them; in a rollout "
    "file the column token_entropy",
    "answer_confidence": "the log-probabilities of the answer's tokens under a slowly averaged reference: training "
    "computes them",
    "ratio_variance": "the importance ratios of the current policy to the one that sampled: training computes them",
    "head_gram": "inner products of the gradients of the policy's output head: training computes them",
    "state": "what the method returned at the step before, empty at first",
}
"""Input -> what supplies it."""

HYPERPARAMETERS = {
    "alpha": "strength, at least 0; 0 gives plain GRPO, bit for bit",
    "reward_range": "(lowest, highest) task reward",
    "mean_one": "divide the weights by their mean over the batch",
}
"""Hyper-parameter that several methods share -> its description, unless a docstring has its own."""


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
