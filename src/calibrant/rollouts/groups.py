"""The rows of a rollout file as groups of equal size."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from calibrant.rollouts.files import group_keys

INPUT_COLUMNS = ("token_entropy", "answer_confidence", "ratio_variance", "correct")
"""Columns that are inputs of methods under their own names."""

PER_TOKEN = {"mean_logprob": "logprob", "ref_mean_logprob": "ref_logprob"}
"""Input -> the column that, divided by `num_tokens`, is the input."""


class RolloutGroups:
    """Rollouts of a file as N groups of G, the largest size; smaller groups are padded with masked rollouts.

    Args:
        frame: as `calibrant.rollouts.read_rollouts` returns it; rows with one `prompt_id` (and `step`, if the file has
            steps) are a group. Without rewards, `correct` is the reward.
        extract: completion -> answer, if the file has no answers.
        path: the file, for error messages.
        keys: the columns that identify a group; those of `group_keys` when None.

    Raises:
        CalibrantError: rollouts of one group answer different prompts.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        extract: Callable[[str], str] = str.strip,
        path: str | Path | None = None,
        keys: list[str] | None = None,
    ):
        self.frame = frame.reset_index(drop=True)
        keys = group_keys(frame, path) if keys is None else keys
        group = self.frame.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
        slot = self.frame.groupby(group).cumcount().to_numpy()
        self.rows = np.full((group.max() + 1, slot.max() + 1), -1)  # [N, G], -1 for padding
        self.rows[group, slot] = np.arange(len(frame))
        answers = self.frame["answer"] if self._has("answer") else self.frame["completion"].map(extract)
        self.answers = self._texts(answers)
        self.completions = self._texts(self.frame["completion"])
        self.rewards = self._numbers("reward" if self._has("reward") or "correct" not in frame else "correct")

    @property
    def counts(self) -> Tensor:
        """`[N, G]`, boolean: False for padding."""
        return torch.from_numpy(self.rows >= 0)

    def given(self) -> dict[str, Tensor]:
        """The inputs of methods that columns hold, `[N, G]`; NaN where a row has no value."""
        given = {"where": self.counts}
        given |= {name: self._numbers(name) for name in INPUT_COLUMNS if self._has(name)}
        for name, column in PER_TOKEN.items():
            if self._has(column) and self._has("num_tokens"):
                length = self._numbers("num_tokens")
                given[name] = torch.where(length > 0, self._numbers(column) / length, torch.nan)
        if self._has("cluster") and self.frame["cluster"].notna().all():
            numbers = np.append(pd.factorize(self.frame["cluster"])[0], -1)  # exact; floats would merge large ids
            given["clusters"] = torch.from_numpy(numbers[self.rows])
        return given

    def references(self) -> list[list[str] | None]:
        """The right answers of each of N * G rollouts, None if the file has none; padding has those of its group."""
        if "references" not in self.frame:
            return [None] * self.rows.size
        column = [None if x is None else list(x) for x in self.frame["references"]]
        return [column[row[0]] for row in self.rows for _ in row]

    def grouped(self, texts: Sequence[str]) -> list[list[str]]:
        """N * G texts as N lists."""
        size = self.rows.shape[1]
        return [list(texts[i : i + size]) for i in range(0, len(texts), size)]

    def column(self, values: Tensor) -> np.ndarray:
        """`[N, G]` or `[N]` as a column of the file."""
        wide = values if values.ndim == 2 else values[:, None].expand(self.rows.shape)
        column, present = np.empty(len(self.frame)), self.rows >= 0
        column[self.rows[present]] = wide.numpy()[present]
        return column

    def _has(self, name: str) -> bool:
        return name in self.frame and bool(self.frame[name].notna().any())

    def _texts(self, column: pd.Series) -> list[str]:
        texts = [*column.fillna(""), ""]  # the last is the padding's, at index -1
        return [texts[i] for i in self.rows.flatten()]

    def _numbers(self, name: str) -> Tensor:
        values = np.append(pd.to_numeric(self.frame[name], errors="coerce").to_numpy(float, na_value=np.nan), np.nan)
        return torch.from_numpy(values[self.rows])
