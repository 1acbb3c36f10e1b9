"""The rows of a rollout file as groups of equal size."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from calibrant.rollouts.files import group_keys

PER_TOKEN = {"mean_logprob": "logprob", "ref_mean_logprob": "ref_logprob"}


AS_THEY_ARE = ("token_entropy", "answer_confidence", "ratio_variance", "correct")


class RolloutGroups:
    """Rollouts of a file as groups of equal size, the shorter ones padded with rollouts that do not count.

    Args:
        frame: as `calibrant.rollouts.read_rollouts` returns it; rows with one `prompt_id` (and `step`, where the file
            has steps) are a group. Without rewards, `correct` is the reward.
        extract: completion -> answer, where the file has no answers.
        path: the file, which errors name.

    Raises:
        CalibrantError: rollouts of one group answer different prompts.
    """

    def __init__(self, frame: pd.DataFrame, extract: Callable[[str], str] = str.strip, path: str | Path | None = None):
        self.frame = frame.reset_index(drop=True)
        number = self.frame.groupby(group_keys(frame, path), sort=False).ngroup().to_numpy()
        place = self.frame.groupby(number).cumcount().to_numpy()
        self.where_from = np.full((number.max() + 1, place.max() + 1), -1)
        self.where_from[number, place] = np.arange(len(frame))
        answers = self.frame["answer"] if "answer" in frame else self.frame["completion"].map(extract)
        self.answers = self._texts(answers)
        self.completions = self._texts(self.frame["completion"])
        self.rewards = self._numbers("reward" if self._has("reward") or "correct" not in frame else "correct")

    @property
    def counts(self) -> Tensor:
        """Which places of a group hold a rollout, `[N, G]`."""
        return torch.from_numpy(self.where_from >= 0)

    def given(self) -> dict[str, Tensor]:
        """The inputs of methods that columns hold, `[N, G]`; NaN where a row has none."""
        found = {"where": self.counts}
        for name in AS_THEY_ARE:
            if self._has(name):
                found[name] = self._numbers(name)
        for name, column in PER_TOKEN.items():
            if self._has(column) and self._has("num_tokens"):
                length = self._numbers("num_tokens")
                found[name] = torch.where(length > 0, self._numbers(column) / length, torch.nan)
        if self._has("cluster") and self.frame["cluster"].notna().all():
            numbers = np.append(pd.factorize(self.frame["cluster"])[0], -1)  # exact, where floats would join large ids
            found["clusters"] = torch.from_numpy(numbers[self.where_from])
        return found

    def references(self) -> list[list[str] | None]:
        """The right answers of each rollout, None where the file has none; padding has those of its group."""
        if "references" not in self.frame:
            return [None] * self.where_from.size
        column = [None if x is None else list(x) for x in self.frame["references"]]
        first = [column[row[0]] for row in self.where_from]
        return [gold for gold in first for _ in range(self.where_from.shape[1])]

    def grouped(self, texts: Sequence[str]) -> list[list[str]]:
        """N * G texts as N lists."""
        size = self.where_from.shape[1]
        return [list(texts[i : i + size]) for i in range(0, len(texts), size)]

    def column(self, values: Tensor) -> np.ndarray:
        """`[N, G]` or `[N]` as a column of the file."""
        wide = values if values.ndim == 2 else values[:, None].expand(self.where_from.shape)
        out = np.empty(len(self.frame))
        out[self.where_from[self.where_from >= 0]] = wide.numpy()[self.where_from >= 0]
        return out

    def _has(self, name: str) -> bool:
        return name in self.frame and bool(self.frame[name].notna().any())

    def _texts(self, column: pd.Series) -> list[str]:
        texts = [*column.fillna(""), ""]  # the last is the padding's, at index -1
        return [texts[i] for i in self.where_from.flatten()]

    def _numbers(self, name: str) -> Tensor:
        values = np.append(pd.to_numeric(self.frame[name], errors="coerce").to_numpy(float, na_value=np.nan), np.nan)
        return torch.from_numpy(values[self.where_from])
