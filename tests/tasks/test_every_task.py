"""Properties of every task, and real data sets."""

import csv
import json
import os
from pathlib import Path

import pytest
from builders_tasks import EMBEDDED, READING

from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.tasks import GENERIC, TASKS
from calibrant.tasks.files import records
from calibrant.tasks.sources import read_items
from calibrant.text.inputs import Readers, read_input

# The table, and all tasks alike


def test_the_table(capsys):
    assert main(["tasks"]) == 0
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(table) == [*TASKS, *GENERIC] and "your own (--data)" in table["choice"]
    assert "embedded" in table["arithmetic"]
    for name, part in (
        ("narrativeqa", "deepmind/narrativeqa"),
        ("narrativeqa", "train, validation, test"),
        ("math500", "2 x correct [0, 2]"),
        ("qasper", "reading"),
        ("aime24", "trained on olympiadbench"),
    ):
        assert part in table[name]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("completion", ["", " ", "\n", "\u2028", "\\boxed{", "The answer is", "$" * 50, "\0"])
def test_any_completion_has_an_answer_and_a_key(name, completion):
    task = TASKS[name]
    assert isinstance(task.extract(completion), str)
    assert isinstance(task.key(completion), str)


@pytest.mark.parametrize("name", [*READING, *EMBEDDED])
def test_batches_agree_with_single_answers(name):
    task, answers, golds = TASKS[name], ["12", "", "a b"], [["12"], ["12"], ["a", "b c"]]
    assert task.reward_batch(answers, golds) == [task.reward(a, g) for a, g in zip(answers, golds, strict=True)]
    assert task.correct_batch(answers, golds) == [task.correct(a, g) for a, g in zip(answers, golds, strict=True)]
    with pytest.raises(ValueError):
        task.reward_batch(answers, golds[:2])


# Real rows, where there are some

DATA = Path(os.environ.get("CALIBRANT_DATA", ""))
REAL = [
    ("narrativeqa", "validation", "narrativeqa/valid.jsonl.gz", "valid.jsonl.gz", 3461),
    ("narrativeqa", "train", "narrativeqa/proxy_train.jsonl.gz", "train.jsonl.gz", 6000),
    ("qasper", "test", "qasper/test.jsonl.gz", "test.jsonl.gz", 152),
    ("hotpotqa", "validation", "hotpotqa/dev_distractor_100.jsonl.gz", "dev.jsonl.gz", 100),
    (
        "hotpotqa",
        "validation",
        "hotpotqa/raw/RECONSTRUCTED_hotpot_dev_distractor_v1.json",
        "hotpot_dev_distractor_v1.json",
        100,
    ),
    ("hotpotqa", "validation", "hotpotqa/raw/distractor_dev100_hfschema.json", "hotpot_dev_distractor_v1.json", 100),
    ("math500", "train", "math/train.jsonl.gz", "train.jsonl.gz", 7498),  # two have an empty box
    ("math500", "train", "math/raw/math_train_hendrycks_schema_cut.jsonl", "train.jsonl", 491),
    ("math500", "test", "math/raw/math500_prm800k_schema.jsonl", "test.jsonl", 500),
    ("aime24", "test", "aime24/raw/test.jsonl", "test.jsonl", 30),
    ("aime25", "test", "aime25/test.jsonl.gz", "test.jsonl.gz", 30),
    ("amc23", "test", "amc23/test.jsonl.gz", "test.jsonl.gz", 40),
    ("minerva", "test", "minerva_math/test.jsonl.gz", "test.jsonl.gz", 272),
    ("olympiadbench", "train", "olympiadbench/raw/test.jsonl", "test.jsonl", 573),
    ("olympiadbench", "test", "olympiadbench/raw/test.jsonl", "test.jsonl", 102),
    ("gsm8k", "train", "gsm8k/train.jsonl.gz", "train.jsonl.gz", 7473),
    ("gsm8k", "test", "gsm8k/test.jsonl.gz", "test.jsonl.gz", 1319),
]


@pytest.mark.skipif(not os.environ.get("CALIBRANT_DATA"), reason="CALIBRANT_DATA names no folder of benchmark data")
@pytest.mark.parametrize(("name", "split", "file", "official", "count"), REAL)
def test_real_rows(tmp_path, name, split, file, official, count):
    if not (DATA / file).exists():
        pytest.skip(f"no {file}")
    (tmp_path / official).symlink_to((DATA / file).resolve())
    task = TASKS[name]
    rows = task.load(split, None, 0, data_dir=tmp_path)
    assert len(rows) == len({row["prompt_id"] for row in rows}) == count
    for row in rows:
        assert row.get("context", "") in row["prompt"]
        assert row["references"] and all(row["references"])
        assert all(turn["content"].strip() for turn in row["messages"])
    said = "So it is $\\boxed{%s}$." if task.kind == "maths" else " %s\n"
    golds = [(gold, row["references"]) for row in rows for gold in row["references"]]
    answers = [task.extract(said % gold) for gold, _ in golds]
    rewards = task.reward_batch(answers, [references for _, references in golds])
    assert rewards.count(task.reward_range[1]) >= 0.995 * len(golds)
    assert all(task.key(said % gold) for gold, _ in golds)


@pytest.mark.skipif(not os.environ.get("CALIBRANT_DATA"), reason="CALIBRANT_DATA names no folder of benchmark data")
def test_real_narrativeqa_tables(tmp_path):
    for name in ("qaps.csv", "summaries.csv"):
        (tmp_path / name).symlink_to((DATA / "narrativeqa" / "raw" / name).resolve())
    with open(tmp_path / "qaps.csv", encoding="utf-8", newline="") as file:
        asked = [row["document_id"] for row in csv.DictReader(file) if row["set"] == "valid"]
    with open(tmp_path / "summaries.csv", encoding="utf-8", newline="") as file:
        told = {row["document_id"] for row in csv.DictReader(file)}
    items, report = read_items("narrativeqa", TASKS["narrativeqa"].source, "validation", tmp_path)
    assert 0 < len(items) == sum(name in told for name in asked)
    assert sum(map(len, report.left_out.values())) == len(asked) - len(items)


@pytest.mark.skipif(not os.environ.get("CALIBRANT_DATA"), reason="CALIBRANT_DATA names no folder of benchmark data")
@pytest.mark.parametrize(("name", "file"), [("gsm8k", "gsm8k/test.jsonl.gz"), ("math500", "math/math500.jsonl.gz")])
def test_real_solutions_are_correct(name, file):
    rows = [row for row in records(DATA / file) if row["answers"]]
    answers = [TASKS[name].extract(row["solution"]) for row in rows]
    rewards = TASKS[name].reward_batch(answers, [row["answers"] for row in rows])
    assert rewards.count(2.0) >= 0.995 * len(rows)


@pytest.mark.parametrize(
    ("name", "file", "record", "said"),
    [
        ("math500", "test.jsonl", {"problem": None, "answer": "4"}, "1 without a question"),
        ("math500", "test.jsonl", {"problem": 5, "answer": "4"}, "record 1 of .* of another schema .*5 is no text"),
        (
            "qasper",
            "test.jsonl",
            {"question": "Who?", "answers": ["Tom"], "context": 7},
            "record 1 of .* of another schema .*7 is no text",
        ),
    ],
)
def test_a_field_that_holds_no_text_is_named_with_its_record(tmp_path, name, file, record, said):
    (tmp_path / file).write_text(json.dumps(record) + "\n")
    with pytest.raises(CalibrantError, match=said):
        TASKS[name].load("test", None, 0, data_dir=tmp_path)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_a_text_is_a_list_of_one_reference(task):
    for answer in ("12", "1"):
        assert task.reward(answer, "12") == task.reward(answer, ["12"])
        assert task.correct(answer, "12") == task.correct(answer, ["12"]) == (answer == "12")
        assert task.correct_batch([answer], ["12"]) == task.correct_batch([answer], [["12"]])
        assert task.reward_batch([answer], ["12"]) == task.reward_batch([answer], [["12"]])
    for batch in (task.correct_batch, task.reward_batch):
        with pytest.raises(CalibrantError, match="one list of references per answer, 2 in all, got a text"):
            batch(["1", "2"], "12")
        with pytest.raises(CalibrantError, match="one list of references per answer, 2 in all, got 1"):
            batch(["1", "2"], [["12"]])


def test_a_text_per_prompt_is_a_list_of_one_reference():
    groups = [["12", "1"], ["2", "7"]]
    readers = Readers(judge=TASKS["arithmetic"].correct_batch)
    expected = [[1.0, 0.0], [0.0, 1.0]]
    assert read_input("correct", readers, groups, groups, ["12", "7"]).tolist() == expected
    assert read_input("correct", readers, groups, groups, [["12"], ["7"]]).tolist() == expected
    with pytest.raises(CalibrantError, match="2 in all, got a text"):
        read_input("correct", readers, groups, groups, "12")
