"""Scores groups of completions: computes the inputs that a method names, and applies it."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calibrant.checks import check_reward_range
from calibrant.groups import Groups, count_out_of_range, has_spread
from calibrant.methods import (
    Method,
    WeightedAdvantages,
    apply,
    check_hyperparameters,
    hyperparameters,
    name_of,
    read_inputs,
)
from calibrant.methods.inputs import TOKEN_INPUTS, UNWEIGHTED
from calibrant.methods.outcome import BASES
from calibrant.options import WeightOptions
from calibrant.text.inputs import CLUSTERED, FROM_TEXT, Readers, TextGroups, read_input

GRAMS = ("head_gram", "block_gram")
"""The inputs that have a matrix per group."""

FROM_POLICY = (
    *("mean_logprob", "ref_mean_logprob", "token_entropy", "answer_confidence", "ratio_variance"),
    *GRAMS,
    *TOKEN_INPUTS,
)
"""The inputs of methods that are computed by the policy or a reference model, or read from a file."""

ENOUGH = 64  # groups that the spread of weights is judged from
SMALLEST_SPREAD = 0.01  # coefficient of variation of weights below which they hardly act


@dataclass(frozen=True)
class Scored:
    """A scored batch of groups."""

    groups: Groups  # rewards and the inputs that were computed, [N, G, ...]
    outcome: WeightedAdvantages
    answers: list[str]  # extracted, N * G in group order


@dataclass(frozen=True)
class Scorer:
    """Applies a method to completions: text -> signals -> method -> advantages.

    `meaning` is the text that signals are computed from, "answer" for question answering, "completion" for mathematics
    (GCPO, appendix E.3); `cluster_text` is the one that is clustered, if it is another.
    """

    method: Method  # its parameters name the inputs to compute
    options: Mapping[str, Any] = field(default_factory=dict)  # hyper-parameters of the method
    readers: Readers = Readers()
    meaning: str = "answer"
    cluster_text: str | None = None  # the text that is clustered and compared; None: `meaning`
    strength: float | None = None  # coefficient of variation of the weights; None: the method's own weights

    @property
    def named(self) -> tuple[str, ...]:
        """The inputs that the method reads with these options, optional ones last."""
        return read_inputs(self.method, self.options)

    def __call__(
        self,
        completions: Sequence[str],
        rewards: Tensor,
        *,
        answers: Sequence[str],
        references: Sequence[list[str] | None] | None = None,
        given: Mapping[str, Tensor] | None = None,
        state: Mapping[str, Tensor] | None = None,
        bases: Mapping[str, Tensor] | None = None,
    ) -> Scored:
        """Scores groups.

        Args:
            completions: N * G texts in group order.
            rewards: `[N, G]`; NaN marks an unscorable rollout.
            answers: N * G extracted answers.
            references: N * G lists of right answers; None where they are not known.
            given: inputs that the caller has, `[N, G, ...]`, e.g. those of `FROM_POLICY`, or `where`.
            state, bases: as in `methods.apply`.
        """
        answers = list(answers)
        inputs = {name: x for name, x in (given or {}).items() if name in (*self.named, "where")}
        wanted = [name for name in self.named if name in FROM_TEXT and name not in inputs]
        inputs |= self._read(wanted, completions, answers, references, rewards)
        groups = Groups(rewards, inputs)
        outcome = apply(self.method, groups, state, bases=bases, strength=self.strength, **self.options)
        return Scored(groups, outcome, answers)

    def _read(
        self,
        wanted: Sequence[str],
        completions: Sequence[str],
        answers: list[str],
        references: Sequence[list[str] | None] | None,
        rewards: Tensor,
    ) -> dict[str, Tensor]:
        size = rewards.shape[1]
        per_prompt = [row for row in (references or [])[::size] if row is not None]
        complete = per_prompt if len(per_prompt) == len(rewards) else None
        texts = {"answer": _in_groups(answers, size), "completion": _in_groups(completions, size)}
        tensors = {
            name: read_input(name, self.readers, texts[self._text_of(name)], texts["answer"], complete)
            for name in wanted
        }
        return {name: tensor.to(rewards.device) for name, tensor in tensors.items() if tensor is not None}

    def _text_of(self, name: str) -> str:
        return (self.cluster_text if name in CLUSTERED else None) or self.meaning


def _in_groups(texts: Sequence[str], size: int) -> TextGroups:
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def dry_run(
    method: Method, options: Mapping[str, Any], without: Sequence[str] = (), strength: float | None = None
) -> WeightedAdvantages:
    """What a method makes of an artificial group of two, so that its errors are raised before sampling starts.

    `without` names inputs that are not supplied.
    """
    reward_range = options.get("reward_range", hyperparameters(method).get("reward_range", (0.0, 2.0)))
    low, high = check_reward_range("dry_run", reward_range)
    artificial = {
        "embeddings": torch.eye(2)[None],
        "clusters": torch.tensor([[0, 1]]),
        "entailment": torch.full((1, 2, 2, 3), 1 / 3),
        "empty": torch.tensor([[False, False]]),
        "correct": torch.tensor([[0.0, 1.0]]),
        "total_rewards": torch.tensor([[low, high]]),
        **{name: torch.full((1, 2), 0.5) for name in FROM_POLICY},
        **{name: torch.full((1, 2, 3), 0.5) for name in TOKEN_INPUTS},
        **dict.fromkeys(GRAMS, torch.eye(2)[None]),
    }
    named = [name for name in read_inputs(method, options) if name not in without]
    inputs = {name: artificial[name] for name in named if name in artificial}
    groups = Groups(torch.tensor([[low, high]], dtype=torch.float32), inputs)
    return apply(method, groups, strength=strength, **options)


def options_of(method: Method, settings: WeightOptions) -> dict[str, Any]:
    """The hyper-parameters of a method that `settings` gives: name -> value.

    `alpha` and `mean_one` take precedence over `method_options`, `method_options` over `reward_range`, which is ignored
    for methods without it. Raises CalibrantError if an option other than `reward_range` is no hyper-parameter of the
    method.
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


def trainer_bases(standardised: Tensor, total_rewards: Tensor) -> dict[str, Tensor]:
    """Base advantages, by name, of the sum of rewards that a trainer optimises, `[N, G]`.

    `standardised` are those that the trainer has computed itself; they are set to 0 where the sum has no spread.
    """
    bases = {name: base(total_rewards).to(standardised) for name, base in BASES.items()}
    return bases | {"standardised": torch.where(has_spread(total_rewards)[:, None], standardised, 0.0)}


def token_mask(inputs: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Which tokens there are, `[N, G, T]` boolean, by the inputs per token; all of `like` if there are none."""
    given = [inputs[name] for name in TOKEN_INPUTS if name in inputs]
    return torch.isfinite(given[0]) if given else torch.ones_like(like, dtype=torch.bool)


def per_rollout(values: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Weights or advantages as `[N, G]`: those per token as the mean over the tokens of each rollout.

    >>> per_rollout(torch.tensor([[[1.0, 0.0, 7.0]]]), {"token_logprobs": torch.tensor([[[-1.0, -2.0, torch.nan]]])})
    tensor([[0.5000]])
    """
    if values.ndim == 2:
        return values
    mask = token_mask(inputs, values)
    mean = torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
    return torch.where(mask.any(-1), mean, values.mean(-1)) if values.shape[-1] else mean


def batch_statistics(scored: Scored, reward_range: tuple[float, float]) -> dict[str, float]:
    """Statistics of a batch of groups, each named by its scope.

    `group/weight/*` (means per rollout of weights per token, which are `token/weight/*`), `group/<score>/*` and, for
    scores per rollout, `rollout/<score>/*`: mean, std, min, max (std is 0 for a single value); `group/uninformative`
    (share of groups whose advantages are all 0), `batch/unscorable` and `batch/reward_out_of_range` (counts of
    rollouts).
    """
    rewards, where, outcome = scored.groups.rewards, scored.groups.where, scored.outcome
    values = {"group/weight": per_rollout(outcome.weights, scored.groups.inputs)[where]}
    if outcome.weights.ndim == 3:
        values["token/weight"] = outcome.weights[where[..., None] & token_mask(scored.groups.inputs, outcome.weights)]
    for name, score in outcome.scores.items():
        values |= {f"rollout/{name}": score[where]} if score.ndim == 2 else {f"group/{name}": score}
    statistics = {f"{name}/{k}": v for name, x in values.items() for k, v in _describe(x).items()}
    statistics["group/uninformative"] = (outcome.advantages == 0).flatten(1).all(dim=1).double().mean().item()
    statistics["batch/unscorable"] = float((~where).sum())
    known = all(map(math.isfinite, reward_range))
    statistics["batch/reward_out_of_range"] = float(count_out_of_range(rewards, reward_range) if known else 0)
    return statistics


def flat_weights(weights: Tensor, method: Method) -> str | None:
    """The sentence for weights `[B]` that hardly differ from each other; None where they do, or are too few to say.

    >>> from calibrant.methods import METHODS
    >>> flat_weights(1 + torch.arange(100) / 1e5, METHODS["gcpo_bot"])  # doctest: +ELLIPSIS
    'the weights of gcpo_bot hardly differ: their coefficient of variation is 0.03% ...
    """
    weights = weights.double()
    spread = (weights.std(correction=0) / weights.mean().clamp(min=1e-12)).item()
    return flat_spread(spread, len(weights), method)


def flat_spread(spread: float, groups: int, method: Method) -> str | None:
    """`flat_weights` of weights whose coefficient of variation over `groups` groups is `spread`."""
    if groups < ENOUGH or name_of(method) in UNWEIGHTED or spread >= SMALLEST_SPREAD:
        return None
    return (
        f"the weights of {name_of(method)} hardly differ: their coefficient of variation is {100 * spread:.2f}% over "
        f"{groups} groups, so that this is nearly its base method; --strength 0.3 sets the spread, and "
        "calibrant analyze shows it for every method"
    )


def rollout_rows(scored: Scored, columns: dict[str, list[Any]], *, step: int) -> list[dict[str, object]]:
    """One row per rollout of a step: columns of N * G values, and what was scored where no column has that name.

    A prompt whose `prompt_id` is None gets a hash of its text, numbered where several groups of the batch have it.
    """
    size = scored.groups.rewards.shape[1]
    columns = {
        "answer": scored.answers,
        "reward": scored.groups.rewards.flatten().tolist(),
        "weight": per_rollout(scored.outcome.weights, scored.groups.inputs).flatten().tolist(),
        **{name: _of_rollouts(x, size) for name, x in scored.outcome.scores.items()},
        **columns,
    }
    if "clusters" in scored.groups.inputs:
        columns["cluster"] = scored.groups.inputs["clusters"].flatten().tolist()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    seen: Counter[str] = Counter()
    for i, row in enumerate(rows):
        row["step"], row["rollout"] = step, i % size
        if row["prompt_id"] is None:
            name = hashlib.sha256(row["prompt"].encode("utf-8", "replace")).hexdigest()[:16]
            seen[name] += i % size == 0
            row["prompt_id"] = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return rows


def _of_rollouts(score: Tensor, size: int) -> list[float]:
    return (score.flatten() if score.ndim == 2 else score.repeat_interleave(size)).tolist()


def _describe(x: Tensor) -> dict[str, float]:
    x = x.double().flatten()
    if not len(x):
        return {}
    std = x.std(correction=0) if len(x) > 1 else torch.zeros(())
    return {"mean": x.mean().item(), "std": std.item(), "min": x.min().item(), "max": x.max().item()}
