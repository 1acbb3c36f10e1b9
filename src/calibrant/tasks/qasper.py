"""Qasper: questions about papers on natural language processing (Dasigi et al., 2021).

References follow the official evaluation: extractive spans joined by commas, else the free-form answer, else "Yes" or
"No"; "Unanswerable" if the annotator found none.
"""

from collections.abc import Iterable

from calibrant.tasks.files import Record, record_list
from calibrant.tasks.reading import reading_task
from calibrant.tasks.sources import Hub, Item, Source

NAMES = {"train": "train", "validation": "dev", "test": "test"}


def parse_qasper(record: Record) -> Iterable[Item]:
    """The questions of a paper, each with the whole paper as context."""
    text = paper(record)
    for question in record_list(record["qas"]):
        answers = [reference(annotation["answer"]) for annotation in record_list(question["answers"])]
        yield Item(question["question_id"], question["question"], answers, text)


def paper(record: Record) -> str:
    """Title, abstract and the sections with text, in order."""
    parts = [record["title"], record["abstract"]]
    for section in record_list(record["full_text"]):
        paragraphs = [text.strip() for text in section["paragraphs"] if text and text.strip()]
        if paragraphs:
            parts.append("\n".join([section["section_name"] or "", *paragraphs]))
    return "\n\n".join(part.strip() for part in parts if part and part.strip())


def reference(answer: Record) -> str:
    """The reference answer of an annotation.

    >>> reference({"unanswerable": False, "extractive_spans": ["BLEU", "ROUGE"], "free_form_answer": ""})
    'BLEU, ROUGE'
    """
    if answer["unanswerable"]:
        return "Unanswerable"
    if answer["extractive_spans"]:
        return ", ".join(answer["extractive_spans"])
    if answer["free_form_answer"]:
        return str(answer["free_form_answer"])
    return {True: "Yes", False: "No"}.get(answer["yes_no"], "")


TASK = reading_task(
    "qasper",
    "questions about scientific papers",
    source=Source(
        hubs={split: Hub("allenai/qasper", split, revision="refs/convert/parquet") for split in NAMES},
        files={
            split: (f"qasper-{name}-v0.3.json", f"qasper/{split}/*.parquet", f"{split}/*.parquet", f"{split}-*.parquet")
            for split, name in NAMES.items()
        },
        schema="qasper-train-v0.3.json, qasper-dev-v0.3.json and qasper-test-v0.3.json",
        url="https://allenai.org/data/qasper",
        parse=parse_qasper,
        needs_context=True,
    ),
    instruction=(
        "Read the paper and answer the question as briefly as you can, with a phrase or a sentence. "
        "If the question cannot be answered from the paper, write Unanswerable; if it asks yes or no, write Yes or No."
    ),
    max_completion_length=128,
    bleu=True,
)
