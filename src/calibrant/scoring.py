"""From completions and rewards to an outcome: computes just the inputs that a method names."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calibrant.clustering import greedy_clusters
from calibrant.errors import CalibrantError
from calibrant.groups import Groups, count_out_of_range, has_spread
from calibrant.methods import Method, Outcome, apply, check_hyperparameters, hyperparameters, required_inputs
from calibrant.text.metrics import normalise_answer

FROM_TEXT = ("embeddings", "clusters")
"""The inputs that a scorer can supply beside the rewards and their mask."""


@dataclass(frozen=True)
class Scored:
    """What became of a batch of groups.

    Attributes:
        groups: rewards and the inputs that were computed, `[N, G, ...]`.
        outcome: what the method made of them.
        answers: the extracted answers, N * G in group order.
    """

    groups: Groups
    outcome: Outcome
    answers: list[str]


class Scorer:
    """Applies a method to completions: text -> signals -> method -> advantages.

    Args:
        method: a method; its parameters name the inputs to compute.
        options: hyper-parameters of the method.
        embed: texts -> L2-normalised embeddings `[B, D]`; needed by methods that name `embeddings`.
        extract: completion -> answer; the stripped completion when None.
        key: answer -> string, equal for answers with one meaning; SQuAD normalisation when None.
        meaning: the text that carries the meaning, "answer" for question answering, "completion" for mathematics
            (GCPO, appendix E.3).

    Raises:
        CalibrantError: the method names an input that nothing here supplies, or an option is not the method's.
    """

    def __init__(
        self,
        method: Method,
        options: Mapping[str, Any],
        *,
        embed: Callable[[Sequence[str]], Tensor] | None = None,
        extract: Callable[[str], str] | None = None,
        key: Callable[[str], str] | None = None,
        meaning: str = "answer",
    ):
        rehearse(method, options)
        self.method, self.options, self.embed = method, dict(options), embed
        self.extract, self.key = extract or str.strip, key or normalise_answer
        self.meaning = meaning

    def __call__(self, completions: Sequence[str], rewards: Tensor) -> Scored:
        """Scores groups.

        Args:
            completions: N * G texts in group order.
            rewards: `[N, G]`; NaN marks an unscorable rollout.
        """
        answers = [self.extract(completion) for completion in completions]
        texts = answers if self.meaning == "answer" else list(completions)
        inputs = {name: self._supply(name, texts, rewards) for name in _supplied(self.method)}
        groups = Groups(rewards, inputs)
        return Scored(groups, apply(self.method, groups, **self.options), answers)

    def _supply(self, name: str, texts: list[str], rewards: Tensor) -> Tensor:
        if name == "embeddings":
            assert self.embed is not None, "the caller gives an embedder to methods that name embeddings"
            return self.embed(texts).to(rewards.device).reshape(*rewards.shape, -1)
        keys = [self.key(text) for text in texts]
        size = rewards.shape[1]
        return greedy_clusters([keys[i : i + size] for i in range(0, len(keys), size)]).to(rewards.device)


def needs_embeddings(method: Method) -> bool:
    """Whether a method names `embeddings`."""
    return "embeddings" in required_inputs(method)


def rehearse(method: Method, options: Mapping[str, Any]) -> None:
    """Applies a method to a made-up group, so that what is wrong with it is said before anything is computed.

    Raises:
        CalibrantError: the method names an input that a scorer cannot supply, an option is not one of its
            hyper-parameters, or it refuses a value.
    """
    missing = [name for name in required_inputs(method) if name not in ("rewards", "where", *FROM_TEXT)]
    if missing:
        raise CalibrantError(
            f"the method '{method.__name__}' names the input {', '.join(missing)}, which nothing supplies here; "
            f"a method may name rewards, where, {', '.join(FROM_TEXT)}"
        )
    inputs = {"embeddings": torch.eye(2)[None], "clusters": torch.tensor([[0, 1]])}
    apply(method, Groups(torch.tensor([[0.0, 1.0]]), {k: inputs[k] for k in _supplied(method)}), **options)


def options_of(method: Method, settings: Any) -> dict[str, Any]:
    """The hyper-parameters that a configuration sets.

    `reward_range` goes to methods that have it; whatever else is set has to be a hyper-parameter of the method.

    Args:
        method: the method.
        settings: anything with `alpha`, `mean_one`, `reward_range` and `method_options`.

    Raises:
        CalibrantError: alpha, mean_one or a further option is set, and the method has none of that name.
    """
    given = dict(settings.method_options or {})
    if settings.alpha is not None:
        given["alpha"] = settings.alpha
    if settings.mean_one:
        given["mean_one"] = True
    if "reward_range" in hyperparameters(method) and settings.reward_range is not None:
        given.setdefault("reward_range", tuple(settings.reward_range))
    check_hyperparameters(method, given)
    return given


def summary(scored: Scored, reward_range: tuple[float, float]) -> dict[str, float]:
    """Statistics of a batch of groups, each named by its scope.

    Returns:
        `group/weight/*` and `group/<score>/*` (mean, std, min, max over groups; std is 0 for a single value),
        `group/uninformative` (share of groups without reward spread), `batch/unscorable` and
        `batch/reward_out_of_range` (counts of rollouts).
    """
    rewards, where = scored.groups.rewards, scored.groups.where
    values = {"weight": scored.outcome.weights[where], **scored.outcome.scores}
    statistics = {f"group/{name}/{k}": v for name, x in values.items() for k, v in _describe(x).items()}
    statistics["group/uninformative"] = 1.0 - has_spread(rewards, where).double().mean().item()
    statistics["batch/unscorable"] = float((~where).sum())
    statistics["batch/reward_out_of_range"] = float(count_out_of_range(rewards, reward_range))
    return statistics


def rollout_rows(
    scored: Scored,
    columns: dict[str, list[Any]],
    *,
    step: int,
    is_correct: Callable[[str, list[str]], bool] | None = None,
) -> list[dict[str, Any]]:
    """One row a rollout: gathered columns beside what was scored.

    Args:
        scored: N groups of G rollouts.
        columns: lists of N * G values, among them `prompt` and `references`.
        step: the optimisation step that trains on them.
        is_correct: (answer, references) -> bool, where correctness is known.
    """
    size = scored.groups.rewards.shape[1]
    clusters = scored.groups.inputs.get("clusters")
    columns = {
        **columns,
        "answer": scored.answers,
        "reward": scored.groups.rewards.flatten().tolist(),
        "weight": scored.outcome.weights.flatten().tolist(),
        **{name: x.repeat_interleave(size).tolist() for name, x in scored.outcome.scores.items()},
    }
    if clusters is not None:
        columns["cluster"] = clusters.flatten().tolist()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for i, row in enumerate(rows):
        row["step"], row["rollout"] = step, i % size
        row["prompt_id"] = row["prompt_id"] or hashlib.sha256(row["prompt"].encode()).hexdigest()[:16]
        if is_correct is not None and row["references"] is not None:
            row["correct"] = is_correct(row["answer"], row["references"])
    return rows


def _describe(x: Tensor) -> dict[str, float]:
    x = x.double().flatten()
    if not len(x):
        return {}
    std = x.std(correction=0) if len(x) > 1 else torch.zeros(())
    return {"mean": x.mean().item(), "std": std.item(), "min": x.min().item(), "max": x.max().item()}


def _supplied(method: Method) -> list[str]:
    return [name for name in required_inputs(method) if name in FROM_TEXT]
