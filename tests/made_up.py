"""Random groups with every input that a method may name, and comparisons with lists."""

import inspect
import math

import pytest
import torch

from calibrant.groups import Groups
from calibrant.methods.outcome import multiply

NAN, INF = math.nan, math.inf
CORRECT = torch.tensor([0.0, 1.0, NAN], dtype=torch.float64)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def random_groups(n=25, size=6, dtype=torch.float64, seed=0, nan=0.2, binary=False):
    """All inputs there are, each with gaps of its own."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape, low=0.0, high=1.0, gaps=nan):
        values = low + (high - low) * torch.rand(n, size, *shape, generator=generator, dtype=torch.float64)
        values[torch.rand(n, size, generator=generator) < gaps] = NAN
        return values.to(dtype)

    rewards = uniform(high=2.0)
    rewards = torch.where(rewards.isnan(), NAN, 2.0 * (rewards > 1.0)).to(dtype) if binary else rewards
    inputs = {
        "embeddings": torch.randn(n, size, 5, generator=generator, dtype=torch.float64).to(dtype),
        "clusters": torch.randint(0, 4, (n, size), generator=generator),
        "entailment": uniform(size, 3).softmax(-1),
        "empty": torch.rand(n, size, generator=generator) < nan,
        "correct": CORRECT[torch.randint(3, (n, size), generator=generator)].to(dtype),
        "total_rewards": uniform(low=-1.0, high=3.0, gaps=0.0),
        "mean_logprob": uniform(low=-2.0, high=0.0),
        "ref_mean_logprob": uniform(low=-2.0, high=0.0),
        "token_entropy": uniform(high=3.0),
        "answer_confidence": uniform(),
        "ratio_variance": uniform(high=0.5),
        **tokens_of(n, size, seed, nan, dtype),
        "where": torch.rand(n, size, generator=generator) > nan / 2,
    }
    gradients = uniform(4, low=-0.5).double()  # not centred, so that the mean of a group is not all noise
    inputs["head_gram"] = (gradients @ gradients.mT).to(dtype)
    inputs["block_gram"] = inputs["head_gram"].clone()
    return Groups(rewards, inputs)


def tokens_of(n, size, seed, nan, dtype, width=7):
    """Inputs per token: completions of 0 to 7 tokens."""
    generator = torch.Generator().manual_seed(seed + 7)
    lengths = torch.randint(0 if nan else 1, width + 1, (n, size, 1), generator=generator)
    missing = torch.arange(width) >= lengths

    def values(low, high):
        uniform = low + (high - low) * torch.rand(n, size, width, generator=generator, dtype=torch.float64)
        return uniform.masked_fill(missing, NAN).to(dtype)

    names = {"token_logprobs": (-5.0, 0.0), "token_entropies": (0.0, 3.0), "token_log_ratios": (-0.3, 0.3)}
    return {name: values(*bounds) for name, bounds in names.items()}


def called(method):
    """A method called as a function on its inputs in order, its base advantages multiplied by its weights."""

    def call(*inputs, **named):
        given = dict(zip(inspect.signature(method).parameters, inputs, strict=False)) | named
        outcome = method(*inputs, **named)
        return multiply(outcome, given.get("rewards", outcome.weights), given.get("where"))

    return call


def lists(groups, n, *names):
    given = {**groups.inputs, "rewards": groups.rewards, "where": groups.where}
    return [given[name][n].tolist() for name in names]


def tolerance(dtype):
    return 1e-11 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps


def agree(found, expected, dtype=torch.float64):
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx(expected, rel=tolerance(dtype), abs=tolerance(dtype))


def weighs(outcome, n, weights, base, dtype):
    """The weights of a group, and the base times them."""
    agree(outcome.weights[n], weights, dtype)
    agree(outcome.advantages[n], [a * w for a, w in zip(base, weights, strict=True)], dtype)
