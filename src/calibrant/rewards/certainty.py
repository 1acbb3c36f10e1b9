"""Self-certainty: how far the policy's next-token distributions are from uniform."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.rewards.stated import warn_of_collapse


def mean_divergence(logits: Tensor) -> float:
    """Self-certainty of one completion from the logits of its tokens, `[T, V]`: nats, at least 0; NaN without tokens.

    `1/T sum_t KL(U, p_t) = -ln V - 1/(T V) sum_t sum_v ln p_t(v)`, with U the uniform distribution over V tokens.

    >>> mean_divergence(torch.zeros(3, 8))
    0.0
    >>> round(mean_divergence(torch.tensor([[0.75, 0.25]]).log()), 6)  # (ln(0.5/0.75) + ln(0.5/0.25)) / 2
    0.143841
    """
    if not len(logits):
        return math.nan
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    return max(0.0, float(-math.log(logits.shape[-1]) - logprobs.mean()))


@torch.no_grad()
def self_certainty(
    prompts: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    policy: Any = None,
    tokenizer: Any = None,
    **_: object,
) -> list[float | None]:
    """The mean divergence of the policy's next-token distributions from the uniform one, in nats; None for no tokens.

    `-ln V - mean ln p` over tokens and vocabulary (`mean_divergence`), of `policy` at temperature 1, in one forward
    pass per completion. `calibrant.trl` passes the policy that is trained and its tokenizer; in a plain TRL script
    give them: `functools.partial(self_certainty, policy=model, tokenizer=tokenizer)`, with a copy of the model for a
    fixed judge.

    Certainty is not correctness: it is raised by any peaked distribution, repetition included. As the only reward it
    improved reasoning at first and then degraded it (arXiv:2506.17219), and a fixed judge was exploited
    (arXiv:2505.19590). Add it to a reward that judges the answer, with a small weight: it is not bounded.

    Reference: self-certainty (arXiv:2502.18581), as a reward in INTUITOR (arXiv:2505.19590) (b).
    """
    if policy is None or tokenizer is None:
        raise CalibrantError(
            "the reward 'self_certainty' needs a policy and its tokenizer; train with calibrant.trl, or give "
            "functools.partial(self_certainty, policy=model, tokenizer=tokenizer)"
        )
    warn_of_collapse("self_certainty", "certainty")
    values = [
        mean_divergence(_logits(policy, _prompt_ids(tokenizer, prompt), list(ids)))
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]
    return [None if math.isnan(value) else value for value in values]


setattr(self_certainty, "reads_policy", True)  # noqa: B010  the trainer passes policy and tokenizer


def _prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False))


def _logits(policy: Any, prompt_ids: list[int], ids: list[int]) -> Tensor:
    """Logits that the tokens of a completion were drawn from, `[T, V]`."""
    device = next(policy.parameters()).device
    tokens = torch.tensor([prompt_ids + ids], device=device)
    was_training = policy.training
    policy.eval()
    try:
        logits: Tensor = policy(input_ids=tokens, logits_to_keep=len(ids) + 1).logits[0, -len(ids) - 1 : -1]
    finally:
        policy.train(was_training)
    return logits
