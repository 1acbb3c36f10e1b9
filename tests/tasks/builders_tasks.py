"""Builders and constants of the tests of tasks."""

import csv
import gzip
import json

from calibrant.tasks import TASKS

EMBEDDED = [name for name, task in TASKS.items() if not task.source]
READING = ["narrativeqa", "qasper", "hotpotqa"]


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path.parent


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def loaded(name, split, folder):
    """The rows of a split, by their ids."""
    return {row["prompt_id"]: row for row in TASKS[name].load(split, None, 0, data_dir=folder)}


NARRATIVE_RECORD = {
    "document": {"id": "d9", "kind": "movie", "text": "the whole story", "summary": {"text": "A plot.", "title": "T"}},
    "question": {"text": "What is it?", "tokens": ["What"]},
    "answers": [{"text": "a plot", "tokens": ["a"]}, {"text": "the plot", "tokens": ["the"]}],
}


def asked(name, *annotations):
    return {"question": f"{name}?", "question_id": name, "nlp_background": "two", "answers": list(annotations)}


MATH = {
    "problem": "Add 1/4 and 1/4.",
    "level": "Level 1",
    "type": "Algebra",
    "solution": "So \\boxed{1} no \\boxed{\\frac{1}{2}}.",
}
