"""Methods applied to the rollouts of a file: weights, advantages and scores."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.methods import Method
from calibrant.methods.recommended import recommended_values
from calibrant.options import WeightOptions
from calibrant.rollouts import RolloutGroups
from calibrant.scorer import Scored, Scorer, options_of
from calibrant.text.inputs import CLUSTERED, Readers

States = dict[str, Mapping[str, Tensor]]  # method -> what it remembers


def score(
    groups: RolloutGroups,
    method: Method,
    options: Mapping[str, object] | None = None,
    readers: Readers | None = None,
    meaning: str = "answer",
    given: Mapping[str, Tensor] | None = None,
    cluster_text: str | None = None,
    strength: float | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Scored:
    """Applies a method, with its hyper-parameters `options`, to rollouts of a file.

    `readers` compute inputs from texts where neither `given` (`groups.given()` if None) nor a column holds them;
    `meaning` is the text that is embedded and, unless `cluster_text` names another, clustered: "answer" or
    "completion"; `strength` and `state` as in `methods.apply`. Raises CalibrantError if an input that the method
    needs is in no column and cannot be computed from text.
    """
    scorer = Scorer(method, dict(options or {}), readers or Readers(), meaning, cluster_text, strength)
    given = groups.given() if given is None else given
    return scorer(
        groups.completions,
        groups.rewards,
        answers=groups.answers,
        references=groups.references(),
        given=given,
        state=state,
    )


def score_all(
    groups: RolloutGroups,
    methods: Mapping[str, Method],
    settings: WeightOptions,
    readers: Readers,
    meaning: str,
    states: States | None = None,
) -> tuple[dict[str, Scored], dict[str, str]]:
    """Method -> what it made of the groups, and method -> the reason why it was not applied.

    `states`, method -> its memory, is updated.
    """
    scored, refused = {}, {}
    states = {} if states is None else states
    common = groups.given()  # texts are read once for all methods
    clustered: dict[str, dict[str, Tensor]] = {"answer": {}, "completion": {}}  # by the text that is clustered
    for name, method in methods.items():
        own = settings.cluster_text or str(recommended_values(method).get("cluster_text", meaning))
        given = clustered[own] | common
        options = options_of(method, settings)
        try:
            result = score(groups, method, options, readers, meaning, given, own, settings.strength, states.get(name))
        except CalibrantError as error:
            refused[name] = str(error)
            continue
        scored[name] = result
        if result.outcome.state is not None:
            states[name] = result.outcome.state
        for key, tensor in result.groups.inputs.items():
            (clustered[own] if key in CLUSTERED else common).setdefault(key, tensor)
    return scored, refused


def distinct_scores(scored: Mapping[str, Scored]) -> dict[str, Tensor]:
    """The scores of several methods; a score that a later method computes differently is `<method>/<score>`."""
    scores: dict[str, Tensor] = {}
    for method, result in scored.items():
        for name, values in result.outcome.scores.items():
            same = name not in scores or torch.equal(scores[name], values)
            scores[name if same else f"{method}/{name}"] = values
    return scores


def named_columns(
    groups: RolloutGroups, scored: Mapping[str, Scored], scores: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """A column for each score, and `<method>/weight` and `<method>/advantage` of each method, by the rows of a file."""
    columns = {name: groups.column(values) for name, values in scores.items()}
    for method, result in scored.items():
        columns[f"{method}/weight"] = groups.column(result.outcome.weights)
        columns[f"{method}/advantage"] = groups.column(result.outcome.advantages)
    return columns


def with_scores(groups: RolloutGroups, scored: Mapping[str, Scored]) -> list[dict[str, object]]:
    """The file's rows with the columns of `score_columns`."""
    frame = groups.frame.assign(**named_columns(groups, scored, distinct_scores(scored)))
    return frame.astype(object).where(frame.notna(), None).to_dict("records")
