"""A task object of one's own: rows, an extractor and a reward beside those of the task `reading`."""

import random
from dataclasses import replace
from pathlib import Path

from calibrant.tasks import Row, resolve

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def load(split: str, size: int | None, seed: int, *, data_dir: Path | None = None) -> list[Row]:
    """Questions for the colours of bags; equal arguments give equal rows."""
    rng = random.Random(f"colours {split} {seed}")
    rows: list[Row] = []
    for i in range(size or 200):
        colours = rng.sample(COLOURS, 2)
        text = f"The first bag is {colours[0]}. The second bag is {colours[1]}."
        question = "Which colours do the bags have?"
        prompt = f"{text}\nQuestion: {question}\nAnswer:"
        rows.append({"prompt_id": f"{split}-{i}", "prompt": prompt, "references": [" ".join(colours)]})
    return rows


def share(answer: str, references: list[str] | str) -> float:
    """The share of the right colours that an answer names."""
    right = (references if isinstance(references, str) else references[0]).split()
    return sum(colour in answer.lower() for colour in right) / len(right)


TASK = replace(
    resolve("reading"),
    name="colours",
    summary="the colours of two bags",
    load=load,
    schema=None,  # its rows are made here, so that it takes no --data
    reward=share,
    reward_range=(0.0, 1.0),
    reward_name="share of right colours",
    metrics={"share": share},
    correct=lambda answer, references: share(answer, references) == 1,
    max_completion_length=16,
)
