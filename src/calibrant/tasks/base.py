"""The definition of a task: rows, answer extraction, reward, metrics, and the text to embed and cluster.

B answers are judged in a batch: `(answers, references)` are B texts and their B lists of right answers.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict

from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.tasks.sources import Item, Source, read_items
from calibrant.text.inputs import VerdictFunction, by_key
from calibrant.text.metrics import answer_pairs

if TYPE_CHECKING:
    from calibrant.tasks.rewards import RewardSet
    from calibrant.tasks.schema import Schema


class Row(TypedDict):
    """One question of a task.

    `prompt` is plain text, for a policy without a chat template; `messages` are the same for one with.
    `context` is the text that the question is about: both contain it verbatim, and only it is truncated.
    """

    prompt_id: str
    prompt: str
    references: list[str]
    messages: NotRequired[list[dict[str, str]]]
    context: NotRequired[str]
    columns: NotRequired[dict[str, Any]]  # of the user's data, for reward functions


class Load(Protocol):
    """The function that loads the rows of a task."""

    def __call__(self, split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
        """Rows; equal arguments give equal rows."""


class Pooled(NamedTuple):
    """A corpus metric: counts `(answer, references) -> K numbers`, and the value in [0, 1] of their sum."""

    counts: Callable[[str, Sequence[str]], Sequence[float]]
    figure: Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Task:
    """A benchmark, as data and pure functions.

    `load` takes `(split, size, seed, *, data_dir=None)` and returns equal rows for equal arguments; `size=None` gives
    the whole split, or its documented default. `data_dir` holds the official files; rows come from the hub when None.
    An embedded task accepts None alone.
    """

    name: str  # the value of `--task`
    summary: str  # one line for `calibrant tasks`
    splits: tuple[str, ...]  # training split first, if there is one, evaluation split last
    load: Load
    extract: Callable[[str], str]  # completion -> answer, the text compared with the references
    reward: Callable[[str, Sequence[str]], float]  # of (answer, references), in `reward_range`; NaN if unscorable
    reward_range: tuple[float, float]  # lowest and highest reward, for reward dispersion
    metrics: Mapping[str, Callable[[str, Sequence[str]], float]]  # name -> function of (answer, references) in [0, 1]
    correct: Callable[[str, Sequence[str]], bool]  # of (answer, references), for accuracy
    key: Callable[[str], str]  # texts with equal keys have the same meaning
    meaning: Literal["answer", "completion"]  # the text that is embedded and clustered
    max_completion_length: int  # tokens
    kind: Literal["reading", "maths", "choice", "chat"] = "reading"
    reward_name: str = "2 x token F1"
    source: Source | None = None  # None for an embedded task
    train_task: str | None = None  # the task whose training split trains a policy for this one; its own when None
    judge: VerdictFunction | None = None  # decides rewards and correctness of a batch, in place of the two functions
    cluster: Callable[[Sequence[Sequence[str]]], Tensor] | None = None  # N groups of texts -> `[N, G]`; by key if None
    pooled: Mapping[str, Pooled] = field(default_factory=dict)  # name -> corpus metric, such as corpus BLEU
    schema: "Schema | None" = None  # the columns of the user's own data; None for a benchmark
    rewards: "RewardSet | None" = None  # reward functions in place of `reward`
    completion_of: Callable[[str], str] = str  # reference -> a completion that gives it, as an example

    def clusters(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """Clusters `[N, G]` of N groups of G texts, without an entailment model."""
        return (self.cluster or by_key(self.key))(groups)

    def correct_batch(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[bool | None]:
        """Correctness of B answers; None where there is no verdict."""
        if self.judge is not None:
            return list(self.judge(answers, references))
        return [self.correct(answer, gold) for answer, gold in answer_pairs(answers, references)]

    def reward_batch(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
        """Rewards of B answers in `reward_range`; None for unscorable ones."""
        if self.judge is None:
            return [self.reward(answer, gold) for answer, gold in answer_pairs(answers, references)]
        worst, best = self.reward_range
        return [None if verdict is None else best if verdict else worst for verdict in self.judge(answers, references)]


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Raises if a task has no such split."""
    if split not in splits:
        raise CalibrantError(f"{name} has no split '{split}'; it has {' and '.join(splits)}")


def splits_of(source: Source | None) -> tuple[str, ...]:
    """The splits of a source; those of the user's own data where it is None."""
    return tuple(source.hubs) if source else ("train", "test")


def loader(name: str, source: Source | None = None, row_of: Callable[[Item], Row] | None = None) -> Load:
    """The `load` function of a task from its source, in an order that depends on the seed.

    Without a source it raises: the task needs the user's own data.
    """

    def load(split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
        if source is None or row_of is None:
            raise CalibrantError(
                f"the task '{name}' needs data: give --data a file, a folder, or the name of a data set of the hub"
            )
        check_split(name, split, tuple(source.hubs))
        items, _ = read_items(name, source, split, data_dir)
        random.Random(f"{name} {split} {seed}").shuffle(items)
        return [row_of(item) for item in items[:size]]

    return load


def check_embedded(name: str, split: str, splits: Sequence[str], data_dir: Path | None) -> None:
    """Raises if an embedded task has no such split, or gets a folder of data."""
    if data_dir is not None:
        raise CalibrantError(f"the data of '{name}' come with the package; leave out --data-dir, got '{data_dir}'")
    check_split(name, split, splits)
