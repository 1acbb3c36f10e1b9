"""Methods applied to rollouts that exist already: a file goes in, weights and signals come out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS, Method
from calibrant.rollouts import group_keys
from calibrant.scoring import Scored, Scorer, options_of
from calibrant.text.inputs import Readers

PER_TOKEN = {"mean_logprob": "logprob", "ref_mean_logprob": "ref_logprob"}
AS_THEY_ARE = ("token_entropy", "answer_confidence", "ratio_variance", "correct")


class RolloutGroups:
    """Rollouts of a file as groups of equal size, the shorter ones padded with rollouts that do not count.

    Args:
        frame: as `calibrant.rollouts.read_rollouts` returns it; rows with one `prompt_id` (and `step`, where the file
            has steps) are a group. Without rewards, `correct` is the reward.
        extract: completion -> answer, where the file has no answers.
    """

    def __init__(self, frame: pd.DataFrame, extract: Callable[[str], str] = str.strip):
        self.frame = frame.reset_index(drop=True)
        number = self.frame.groupby(group_keys(frame), sort=False).ngroup().to_numpy()
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
            found["clusters"] = self._numbers("cluster").nan_to_num(-1).long()
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


def score(
    groups: RolloutGroups,
    method: Method,
    options: Mapping[str, Any] | None = None,
    readers: Readers | None = None,
    meaning: str = "answer",
    given: Mapping[str, Tensor] | None = None,
) -> Scored:
    """Applies a method to rollouts of a file.

    Args:
        groups: the rollouts.
        method: the method.
        options: its hyper-parameters.
        readers: what reads texts, where no column holds what they would give.
        meaning: the text that carries the meaning, "answer" or "completion".
        given: inputs that are there already; those of `groups.given()` when None.

    Raises:
        CalibrantError: an input that the method needs is in no column and cannot be read from text.
    """
    scorer = Scorer(method, dict(options or {}), readers or Readers(), meaning=meaning)
    return scorer(
        groups.completions,
        groups.rewards,
        answers=groups.answers,
        references=groups.references(),
        given=groups.given() if given is None else given,
    )


def score_all(
    groups: RolloutGroups,
    methods: Sequence[str],
    settings: Any,
    readers: Readers,
    meaning: str = "answer",
) -> tuple[dict[str, Scored], dict[str, str]]:
    """Applies several methods; one whose inputs are missing is named with the reason.

    Args:
        groups: the rollouts.
        methods: names in `METHODS`.
        settings: as for `scoring.options_of`; options go to the methods that have them.
        readers: what reads texts.
        meaning: the text that carries the meaning.

    Returns:
        What was scored, by method, and why others were not.
    """
    scored, refused = {}, {}
    known = groups.given()
    for name in methods:
        try:
            options = options_of(METHODS[name], settings)
            scored[name] = score(groups, METHODS[name], options, readers, meaning, known)
        except CalibrantError as error:
            refused[name] = str(error)
        else:
            known |= scored[name].groups.inputs  # texts are read once for all methods
    return scored, refused


def distinct_scores(scored: Mapping[str, Scored]) -> dict[str, Tensor]:
    """The scores of several methods: what two of them compute alike once, `<method>/<score>` where they differ."""
    scores: dict[str, Tensor] = {}
    for method, found in scored.items():
        for name, values in found.outcome.scores.items():
            same = name not in scores or torch.equal(scores[name], values)
            scores[name if same else f"{method}/{name}"] = values
    return scores


def with_scores(groups: RolloutGroups, scored: Mapping[str, Scored]) -> list[dict[str, Any]]:
    """The file's rows with each score, and `<method>/weight` and `<method>/advantage` of each method."""
    frame = groups.frame.copy()
    for name, values in distinct_scores(scored).items():
        frame[name] = groups.column(values)
    for method, found in scored.items():
        frame[f"{method}/weight"] = groups.column(found.outcome.weights)
        frame[f"{method}/advantage"] = groups.column(found.outcome.advantages)
    known = frame.notna()
    return frame.astype(object).where(known, None).to_dict("records")
