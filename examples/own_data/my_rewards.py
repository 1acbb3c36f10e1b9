"""Reward functions of one's own: one number per completion, None for one that cannot be scored."""

from typing import Any


def text_of(completion: Any) -> str:
    """The text of a completion: of a model with a chat template, completions are turns."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def brief(completions: list[Any], **_: object) -> list[float]:
    """1 for a completion of at most three words, else 0."""
    return [float(len(text_of(c).split()) <= 3) for c in completions]


brief.reward_range = (0, 1)  # type: ignore[attr-defined]  # what reward dispersion is measured against


def length(completions: list[Any], words: list[int], **_: object) -> list[float]:
    """Nearness of the number of words to the column `words` of the data, in [0, 1]."""
    counts = [len(text_of(c).split()) for c in completions]
    return [1 - min(1.0, abs(count - goal) / goal) for count, goal in zip(counts, words, strict=True)]
