"""NarrativeQA: questions about books and film scripts, answered from their summaries (Kočiský et al., 2018).

GCPO does not say which text its policy reads. It is the summary here, an interpretation: a whole story exceeds the
context length of the models that GCPO trains.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from calibrant.errors import CalibrantError
from calibrant.tasks.files import Record, records
from calibrant.tasks.reading import reading_task
from calibrant.tasks.sources import Hub, Item, Source

URL = "https://github.com/google-deepmind/narrativeqa"
SUMMARIES = ("third_party/wikipedia/summaries.csv", "summaries.csv")
SETS = {"train": "train", "validation": "valid", "test": "test"}  # split -> its value in the column `set` of qaps.csv


def with_summaries(path: Path, questions: Iterator[Record], split: str) -> Iterator[Record]:
    """The questions of a split in `qaps.csv`, joined with the summaries; records of other files have theirs already."""
    if path.name != "qaps.csv":
        yield from questions
        return
    file = next((path.parent / name for name in SUMMARIES if (path.parent / name).is_file()), None)
    if file is None:
        raise CalibrantError(f"'{path}' needs the summaries beside it, {' or '.join(SUMMARIES)}; they are at {URL}")
    summaries = {row["document_id"]: row["summary"] for row in records(file)}
    for row in questions:
        if row["set"] == SETS[split]:
            yield {**row, "summary": summaries.get(row["document_id"], "")}


def parse_narrativeqa(record: Record) -> Iterable[Item]:
    """The question of a row of `qaps.csv` with its summary, or of a row of the hub's data set."""
    if "document" in record:
        document, answers = record["document"], [answer["text"] for answer in record["answers"]]
        yield Item(document["id"], record["question"]["text"], answers, context=document["summary"]["text"])
    else:
        answers = [record["answer1"], record["answer2"]]
        yield Item(record["document_id"], record["question"], answers, context=record["summary"])


TASK = reading_task(
    "narrativeqa",
    "questions about stories, read in summaries",
    source=Source(
        hubs={split: Hub("deepmind/narrativeqa", split) for split in SETS},
        files={split: ("qaps.csv", f"data/{split}-*.parquet", f"{split}-*.parquet") for split in SETS},
        schema="qaps.csv and third_party/wikipedia/summaries.csv",
        url=URL,
        parse=parse_narrativeqa,
        columns=("document.id", "document.summary.text", "question.text", "answers"),
        join=with_summaries,
        needs_context=True,
    ),
    instruction="Read the summary of a story and answer the question in a few words.",
    max_completion_length=64,
    bleu=True,
)
