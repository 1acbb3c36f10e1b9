"""OlympiadBench: 675 open-ended problems in English, text only (He et al., 2024; the part OE_TO_maths_en_COMP).

It has no training set, and the paper does not describe its "designed split" (GCPO, appendix E.3). Here 15% are for
testing: the accuracies of the paper's table 2 (36.27, 37.25, 38.24, 33.33) are multiples of 1/102, and 15% of 675,
or of the hub's 674, are 102. The SHA-256 of the question decides, so that order and ids of a copy do not matter.
"""

import hashlib
import math
from collections.abc import Iterable

from calibrant.tasks.cells import number_text
from calibrant.tasks.files import Record
from calibrant.tasks.maths import maths_task
from calibrant.tasks.sources import Hub, Item, Source

PART = "OE_TO_maths_en_COMP"
TEST_SHARE = 0.15
SPLITS = ("train", "test")
FILES = ("test.jsonl", "test.jsonl.gz", f"{PART}.json", f"{PART}/*.parquet", f"{PART}.parquet")


def parse_olympiadbench(record: Record) -> Iterable[Item]:
    """A problem; its final answers, joined by commas, are right with or without their unit."""
    question = "\n\n".join(part.strip() for part in (record.get("context"), record["question"]) if part)
    answer, unit = ", ".join(record["final_answer"] or []), record.get("unit")
    yield Item(number_text(record["id"]), question, [answer, f"{answer} {unit}"] if answer and unit else [answer])


def divide(items: list[Item], split: str) -> list[Item]:
    """The problems of a split, in the order of the source."""
    by_hash = sorted(items, key=lambda item: hashlib.sha256(" ".join(item.question.split()).encode()).hexdigest())
    test = {id(item) for item in by_hash[: math.ceil(TEST_SHARE * len(items))]}
    return [item for item in items if (id(item) in test) == (split == "test")]


TASK = maths_task(
    "olympiadbench",
    "olympiad problems, 15% of them for testing",
    source=Source(
        hubs={split: Hub("Hothan/OlympiadBench", "train", (PART,)) for split in SPLITS},
        files=dict.fromkeys(SPLITS, FILES),
        schema="one file for both splits, test.jsonl or OE_TO_maths_en_COMP.json, with id, question and final_answer",
        url="https://github.com/OpenBMB/OlympiadBench",
        parse=parse_olympiadbench,
        divide=divide,
    ),
    max_completion_length=2048,
)
