"""GSM8K: grade-school word problems (Cobbe et al., 2021)."""

from collections.abc import Iterable

from calibrant.tasks.files import Record
from calibrant.tasks.maths import maths_task
from calibrant.tasks.sources import Hub, Item, Source
from calibrant.text.extract import after_marker

SPLITS = ("train", "test")


def parse_gsm8k(record: Record) -> Iterable[Item]:
    """A problem; its answer follows `####` in the solution."""
    yield Item("", record["question"], [after_marker(record["answer"]).replace(",", "")])


TASK = maths_task(
    "gsm8k",
    "grade-school word problems",
    source=Source(
        hubs={split: Hub("openai/gsm8k", split, ("main",)) for split in SPLITS},
        files={split: (f"{split}.jsonl", f"main/{split}-*.parquet", f"{split}-*.parquet") for split in SPLITS},
        schema="train.jsonl and test.jsonl with question and answer, '#### 18' at its end",
        url="https://github.com/openai/grade-school-math",
        parse=parse_gsm8k,
    ),
    max_completion_length=512,
)
