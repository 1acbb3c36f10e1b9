"""Methods applied to rollouts that exist already: a file goes in, weights and signals come out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS, Method
from calibrant.options import WeightOptions
from calibrant.rollouts import RolloutGroups
from calibrant.scorer import Scored, Scorer, options_of
from calibrant.text.inputs import Readers


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
    settings: WeightOptions,
    readers: Readers,
    meaning: str = "answer",
) -> tuple[dict[str, Scored], dict[str, str]]:
    """Applies several methods; one whose inputs are missing is named with the reason.

    Args:
        groups: the rollouts.
        methods: names in `METHODS`.
        settings: as for `scorer.options_of`; options go to the methods that have them.
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
