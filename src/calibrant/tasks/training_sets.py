"""DeepScaleR (about 40,000 problems) and OpenR1-Math-220k (about 94,000 in its configuration "default"), to train on.

Neither has a test set; both are tested on MATH-500, our choice (c), and `calibrant evaluate RUN --task NAME` takes
another benchmark.
"""

from collections.abc import Callable, Iterable

from calibrant.tasks import math500
from calibrant.tasks.base import Task
from calibrant.tasks.files import Record
from calibrant.tasks.maths import maths_task, parse_problem
from calibrant.tasks.sources import Hub, Item, Source

COLUMNS = ("problem", "solution", "answer", "question_type", "uuid", "unique_id")
"""Those that are read; OpenR1-Math has long generations beside them."""
NONE = ("", "proof", "notfound")
"""Answers that are none, in lower case and without white space."""


def parse_openr1(record: Record) -> Iterable[Item]:
    """A problem with its answer; a proof has none, nor has a problem whose answer was not found."""
    for item in parse_problem(record):
        proof = record.get("question_type") == "proof" or "".join(item.answers[0].lower().split()) in NONE
        yield item._replace(id=item.id or record.get("uuid") or "", answers=[] if proof else item.answers)


def training_set(
    name: str, summary: str, repository: str, files: tuple[str, ...], parse: Callable[[Record], Iterable[Item]]
) -> Task:
    """A task with the training problems of a data set, and MATH-500 for testing."""
    test = math500.SOURCE
    source = Source(
        hubs={"train": Hub(repository, "train"), "test": test.hubs["test"]},
        files={
            "train": ("train.jsonl", *files),
            "test": (*test.files["test"], *(f"{folder}/test.jsonl" for folder in ("math500", *test.folders))),
        },
        schema=f"for training {' or '.join(files)}, with problem and answer; for testing test.jsonl, as math500",
        url=f"https://huggingface.co/datasets/{repository}",
        parse=parse,
        columns=COLUMNS,
    )
    return maths_task(name, f"{summary}; tested on MATH-500", source=source, max_completion_length=2048)


DEEPSCALER = training_set(
    "deepscaler", "DeepScaleR's competition problems", "agentica-org/DeepScaleR-Preview-Dataset",
    ("deepscaler.json", "train-*.parquet"), parse_problem,
)  # fmt: skip
OPENR1_MATH = training_set(
    "openr1_math", "OpenR1-Math's problems with a single answer", "open-r1/OpenR1-Math-220k",
    ("data/train-*.parquet", "train-*.parquet"), parse_openr1,
)  # fmt: skip
