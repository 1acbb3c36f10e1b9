"""What is told about scored rollouts: statistics that are computed per unit and added up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from calibrant.scorer import Scored, per_rollout


@dataclass(frozen=True)
class Moments:
    """Count, sum, sum of squares, and range of some numbers."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """Those of all elements."""
        x = values.double().flatten()
        if not len(x):
            return cls()
        return cls(len(x), x.sum().item(), x.square().sum().item(), x.min().item(), x.max().item())

    def __add__(self, other: "Moments") -> "Moments":
        sums = (self.count + other.count, self.total + other.total, self.squares + other.squares)
        return Moments(*sums, min(self.low, other.low), max(self.high, other.high))

    @property
    def mean(self) -> float:
        """0 where there are none."""
        return self.total / max(self.count, 1)

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return max(self.squares / max(self.count, 1) - self.mean**2, 0.0) ** 0.5


@dataclass(frozen=True)
class Summary:
    """Statistics of some groups; those of `weights` and `scores` are by method and by score."""

    groups: int = 0
    scorable: int = 0
    uninformative: Mapping[str, int] = field(default_factory=dict)  # method -> groups whose advantages are all 0
    weights: Mapping[str, Moments] = field(default_factory=dict)  # of rollouts
    group_weights: Mapping[str, Moments] = field(default_factory=dict)  # of groups with at least two rollouts
    scores: Mapping[str, Moments] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)  # method -> why it was not applied to some of the groups

    @classmethod
    def of(
        cls, scored: Mapping[str, Scored], scores: Mapping[str, Tensor], where: Tensor, refused: Mapping[str, str]
    ) -> "Summary":
        """The summary of a unit; `where`, `[N, G]`, says which rollouts are scorable."""
        compared = where.sum(-1) >= 2
        outcomes = {name: x.outcome for name, x in scored.items()}
        weights = {name: per_rollout(x.weights, {}) for name, x in outcomes.items()}
        return cls(
            len(where),
            int(where.sum()),
            {name: int((x.advantages == 0).flatten(1).all(1).sum()) for name, x in outcomes.items()},
            {name: Moments.of(x[where]) for name, x in weights.items()},
            {name: Moments.of(x[compared].mean(-1)) for name, x in weights.items()},
            {name: Moments.of(x[where] if x.ndim == 2 else x) for name, x in scores.items()},
            dict(refused),
        )

    def __add__(self, other: "Summary") -> "Summary":
        return Summary(
            self.groups + other.groups,
            self.scorable + other.scorable,
            _added(self.uninformative, other.uninformative),
            _added(self.weights, other.weights),
            _added(self.group_weights, other.group_weights),
            _added(self.scores, other.scores),
            {**other.refused, **self.refused},
        )

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "Summary":
        """A summary from `dataclasses.asdict` of one."""
        moments = {
            part: {name: Moments(**x) for name, x in data[part].items()}
            for part in ("weights", "group_weights", "scores")
        }
        return cls(**{**data, **moments})


def _added(some: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    both = {name: some[name] + others[name] for name in some if name in others}
    return {**some, **others, **both}
