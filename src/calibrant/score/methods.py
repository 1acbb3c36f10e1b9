"""Methods applied to the rollouts of a file: weights, advantages and scores."""

from collections.abc import Mapping

import torch
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.methods import Method
from calibrant.methods.recommended import recommended_values
from calibrant.options import WeightOptions
from calibrant.rollouts import RolloutGroups
from calibrant.scorer import Scored, Scorer, options_of
from calibrant.text.inputs import CLUSTERED, Readers


def score(
    groups: RolloutGroups,
    method: Method,
    options: Mapping[str, object] | None = None,
    readers: Readers | None = None,
    meaning: str = "answer",
    given: Mapping[str, Tensor] | None = None,
    cluster_text: str | None = None,
    strength: float | None = None,
) -> Scored:
    """Applies a method, with its hyper-parameters `options`, to rollouts of a file.

    `readers` compute inputs from texts where neither `given` (`groups.given()` if None) nor a column holds them;
    `meaning` is the text that is embedded and, unless `cluster_text` names another, clustered: "answer" or
    "completion"; `strength` as in `methods.apply`. Raises CalibrantError if an input that the method needs is in no
    column and cannot be computed from text.
    """
    scorer = Scorer(method, dict(options or {}), readers or Readers(), meaning, cluster_text, strength)
    given = groups.given() if given is None else given
    return scorer(
        groups.completions, groups.rewards, answers=groups.answers, references=groups.references(), given=given
    )


def score_all(
    groups: RolloutGroups, methods: Mapping[str, Method], settings: WeightOptions, readers: Readers, meaning: str
) -> tuple[dict[str, Scored], dict[str, str]]:
    """Method -> what it made of the groups, and method -> the reason why it was not applied."""
    scored, refused = {}, {}
    common = groups.given()  # texts are read once for all methods
    clustered: dict[str, dict[str, Tensor]] = {"answer": {}, "completion": {}}  # by the text that is clustered
    for name, method in methods.items():
        own = settings.cluster_text or str(recommended_values(method).get("cluster_text", meaning))
        given = clustered[own] | common
        try:
            scored[name] = score(
                groups, method, options_of(method, settings), readers, meaning, given, own, settings.strength
            )
        except CalibrantError as error:
            refused[name] = str(error)
        else:
            for key, tensor in scored[name].groups.inputs.items():
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


def with_scores(groups: RolloutGroups, scored: Mapping[str, Scored]) -> list[dict[str, object]]:
    """The file's rows with each score, and `<method>/weight` and `<method>/advantage` of each method."""
    frame = groups.frame.copy()
    for name, values in distinct_scores(scored).items():
        frame[name] = groups.column(values)
    for method, result in scored.items():
        frame[f"{method}/weight"] = groups.column(result.outcome.weights)
        frame[f"{method}/advantage"] = groups.column(result.outcome.advantages)
    return frame.astype(object).where(frame.notna(), None).to_dict("records")
