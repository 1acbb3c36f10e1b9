"""Rollouts to score."""

import numpy as np


def rollouts(groups=12, size=4, seed=0):
    draw = np.random.default_rng(seed)
    return [
        {
            "prompt_id": f"q{group}",
            "prompt": f"Question {group}?",
            "completion": f"It is {draw.choice(['Paris', 'Rome', 'Oslo'])}",
            "reward": float(draw.integers(0, 3)),
            "correct": bool(draw.integers(0, 2)),
            "logprob": -float(draw.uniform(1, 9)),
            "ref_logprob": -float(draw.uniform(1, 9)),
            "num_tokens": int(draw.integers(2, 9)),
            "token_entropy": float(draw.uniform(0, 1)),
        }
        for group in range(groups)
        for _ in range(size)
    ]
