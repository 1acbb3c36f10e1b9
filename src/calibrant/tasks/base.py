"""What a benchmark is: rows, a prompt, an answer, a reward, and which text carries meaning."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict


class Row(TypedDict):
    """One question of a task."""

    prompt_id: str
    prompt: str
    references: list[str]


@dataclass(frozen=True)
class Task:
    """A benchmark, as data and pure functions.

    Attributes:
        name: the name that `--task` takes.
        summary: one line for `calibrant tasks`.
        splits: the names that `load` accepts, training split first, evaluation split second.
        load: `(split, size, seed) -> rows`; the same arguments give the same rows; `size=None` gives all that
            a finite split has, or its documented default.
        extract: completion -> answer, the text that is compared with the references.
        reward: `(answer, references) -> float` inside `reward_range`.
        reward_range: lowest and highest reward, as reward dispersion reads it.
        metrics: name -> `(answer, references) -> float` in [0, 1].
        correct: `(answer, references) -> bool`, what "accuracy" counts.
        key: answer -> string; two answers with one key mean the same.
        meaning: the text that is embedded and clustered: the extracted answer or the whole completion.
        max_completion_length: tokens that a completion may take.
    """

    name: str
    summary: str
    splits: tuple[str, ...]
    load: Callable[[str, int | None, int], list[Row]]
    extract: Callable[[str], str]
    reward: Callable[[str, Sequence[str]], float]
    reward_range: tuple[float, float]
    metrics: Mapping[str, Callable[[str, Sequence[str]], float]]
    correct: Callable[[str, Sequence[str]], bool]
    key: Callable[[str], str]
    meaning: Literal["answer", "completion"]
    max_completion_length: int
