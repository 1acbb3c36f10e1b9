"""What a benchmark is: rows, a prompt, an answer, a reward, and which text carries meaning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, NotRequired, Protocol, TypedDict

from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.tasks.sources import Source
from calibrant.text.inputs import by_key


class Row(TypedDict):
    """One question of a task.

    `prompt` is plain text, for a policy without a chat template; `messages` say the same in turns, for one with.
    `context` is the text that the question is about: it stands in both, letter by letter, and is what may be cut.
    """

    prompt_id: str
    prompt: str
    references: list[str]
    messages: NotRequired[list[dict[str, str]]]
    context: NotRequired[str]


class Load(Protocol):
    """`(split, size, seed, *, data_dir) -> rows`."""

    def __call__(self, split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
        """The same arguments give the same rows."""


Judge = Callable[[Sequence[str], Sequence[Sequence[str]]], list[bool | None]]


class Pooled(NamedTuple):
    """A metric of a whole corpus: counts of each answer that add up, `(answer, references) -> K numbers`, and the
    figure in [0, 1] that their sum gives."""

    counts: Callable[[str, Sequence[str]], Sequence[float]]
    figure: Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Task:
    """A benchmark, as data and pure functions.

    Attributes:
        name: the name that `--task` takes.
        summary: one line that says what it is.
        splits: the names that `load` accepts, training split first, evaluation split last; a task that is trained
            on another one (`train_task`) has no training split.
        load: `(split, size, seed, *, data_dir=None) -> rows`; the same arguments give the same rows; `size=None` gives
            all that a finite split has, or its documented default. `data_dir` holds the official files; without it
            rows come from the hub. An embedded task refuses one.
        extract: completion -> answer, the text that is compared with the references.
        reward: `(answer, references) -> float` inside `reward_range`, NaN where nothing can be said; one at a time.
        reward_range: lowest and highest reward, as reward dispersion reads it.
        metrics: name -> `(answer, references) -> float` in [0, 1].
        cluster: N groups of G texts that carry the meaning -> cluster numbers `[N, G]`, where equal keys do not say it
            all; texts with equal keys are a cluster when None.
        pooled: name -> a metric of all answers together, as corpus BLEU.
        correct: `(answer, references) -> bool`, what "accuracy" counts; one at a time.
        key: text that carries the meaning -> string; two texts with one key mean the same.
        meaning: the text that is embedded and clustered: the extracted answer or the whole completion.
        max_completion_length: tokens that a completion may take.
        kind: what it asks for: to read a text and answer, or to solve a problem.
        reward_name: the reward in words.
        source: where rows come from; None for an embedded task.
        train_task: the task whose training split trains a policy for this one; its own when None.
        judge: B answers and their references -> B verdicts, None where there is none; decides reward and
            correctness of a whole batch. Answers are judged one at a time by `reward` and `correct` when None.
    """

    name: str
    summary: str
    splits: tuple[str, ...]
    load: Load
    extract: Callable[[str], str]
    reward: Callable[[str, Sequence[str]], float]
    reward_range: tuple[float, float]
    metrics: Mapping[str, Callable[[str, Sequence[str]], float]]
    correct: Callable[[str, Sequence[str]], bool]
    key: Callable[[str], str]
    meaning: Literal["answer", "completion"]
    max_completion_length: int
    kind: Literal["reading", "maths"] = "reading"
    reward_name: str = "2 x token F1"
    source: Source | None = None
    train_task: str | None = None
    judge: Judge | None = None
    cluster: Callable[[Sequence[Sequence[str]]], Tensor] | None = None
    pooled: Mapping[str, Pooled] = field(default_factory=dict)

    def clusters(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """Cluster numbers `[N, G]` of N groups of G texts that carry the meaning, without an entailment model."""
        return (self.cluster or by_key(self.key))(groups)

    def correct_batch(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[bool | None]:
        """Which of B answers are correct; None where that cannot be said."""
        if self.judge is not None:
            return self.judge(answers, references)
        return [self.correct(answer, gold) for answer, gold in zip(answers, references, strict=True)]

    def reward_batch(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float | None]:
        """The rewards of B answers inside `reward_range`; None for an unscorable one."""
        if self.judge is None:
            return [self.reward(answer, gold) for answer, gold in zip(answers, references, strict=True)]
        worst, best = self.reward_range
        return [None if right is None else best if right else worst for right in self.judge(answers, references)]


def refuse_data_dir(name: str, data_dir: Path | None) -> None:
    """Raises where an embedded task is given a folder of data."""
    if data_dir is not None:
        raise CalibrantError(f"the data of '{name}' come with the package; leave --data-dir away, got '{data_dir}'")


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Raises where a task has no such split."""
    if split not in splits:
        raise CalibrantError(f"{name} has no split '{split}'; it has {' and '.join(splits)}")
