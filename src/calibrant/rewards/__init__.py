"""Reward functions that reward calibration, for TRL and for `--reward-funcs calibrant.rewards.brier`.

They have TRL's signature: `completions`, texts or chats, one column of the data set per keyword, and further keywords
that are ignored; they return one number per completion, None for one that cannot be scored. Rewards of one's own
completions (`semantic_calibration`, `self_certainty`) know nothing of right and wrong: published runs that optimised
such a reward alone rose for a while and then collapsed. Use them beside a reward that judges the answer.
"""

from calibrant.rewards.certainty import self_certainty
from calibrant.rewards.stated import CONFIDENCE_PROMPT, brier, semantic_calibration, stated_answer, stated_confidence

__all__ = [
    "CONFIDENCE_PROMPT", "brier", "self_certainty", "semantic_calibration", "stated_answer", "stated_confidence",
]  # fmt: skip
