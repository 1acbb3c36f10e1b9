"""GSM8K: word problems of primary school (Cobbe et al., 2021)."""

from collections.abc import Iterable

from calibrant.tasks.files import Record
from calibrant.tasks.maths import maths_task
from calibrant.tasks.sources import Hub, Item, Source

SPLITS = ("train", "test")


def parse(record: Record) -> Iterable[Item]:
    """A problem; its answer stands after `####` in the solution."""
    yield Item("", record["question"], [record["answer"].rpartition("####")[2].replace(",", "")])


TASK = maths_task(
    "gsm8k",
    "word problems of primary school",
    source=Source(
        hubs={split: Hub("openai/gsm8k", split, ("main",)) for split in SPLITS},
        files={split: (f"{split}.jsonl", f"main/{split}-*.parquet", f"{split}-*.parquet") for split in SPLITS},
        schema="train.jsonl and test.jsonl with question and answer, '#### 18' at its end",
        url="https://github.com/openai/grade-school-math",
        parse=parse,
    ),
    splits=SPLITS,
    max_completion_length=512,
)
