"""The benchmarks: rows in each official schema, prompts that fit, rewards of batches, where rows come from."""

import csv
import gzip
import json
import math
import os
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant import hub
from calibrant.cli.main import main
from calibrant.errors import CalibrantError
from calibrant.policy.models import load_tokenizer
from calibrant.tasks import TASKS, maths, problems, prompts, training_task
from calibrant.tasks.arithmetic import TASK as ARITHMETIC
from calibrant.tasks.files import records
from calibrant.tasks.olympiadbench import divide
from calibrant.tasks.prompts import fit, fit_all, prompt_for, prompt_tokens
from calibrant.tasks.sources import Item, read_items

FROM_FILES = [name for name, task in TASKS.items() if task.source]
EMBEDDED = [name for name, task in TASKS.items() if not task.source]
READING = ["narrativeqa", "qasper", "hotpotqa"]
MATHS = ["math500", "aime24", "aime25", "amc23", "minerva", "olympiadbench", "gsm8k"]


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


# Question answering


def narrativeqa_files(folder):
    question = {"question_tokenized": "-", "answer1_tokenized": "-", "answer2_tokenized": "-"}
    table(
        folder / "qaps.csv",
        [
            {"document_id": "d1", "set": "train", "question": "Who lies?", "answer1": "Tom", "answer2": "Tom, twice"}
            | question,
            {"document_id": "d1", "set": "train", "question": "Where, then?", "answer1": "At sea", "answer2": ""}
            | question,
            {"document_id": "d2", "set": "valid", "question": "Why?", "answer1": "Fear", "answer2": "Love"} | question,
            {"document_id": "d3", "set": "test", "question": "When?", "answer1": "Now", "answer2": "Never"} | question,
        ],
    )
    table(
        folder / "third_party" / "wikipedia" / "summaries.csv",
        [
            {"document_id": name, "set": "-", "summary": f'Summary of {name}, "quoted"\n over lines.'}
            for name in ("d1", "d2")
        ],
    )
    return folder


def test_narrativeqa_csv(tmp_path, caplog):
    folder = narrativeqa_files(tmp_path)
    rows = loaded("narrativeqa", "train", folder)
    assert {name: row["references"] for name, row in rows.items()} == {"d1": ["Tom", "Tom, twice"], "d1#2": ["At sea"]}
    assert rows["d1"]["context"] == 'Summary of d1, "quoted"\n over lines.'
    assert rows["d1"]["prompt"] == (
        "Read the summary of a story and answer the question in a few words.\n\n"
        'Summary of d1, "quoted"\n over lines.\n\nQuestion: Who lies?\nAnswer:'
    )
    assert rows["d1"]["messages"] == [{"role": "user", "content": rows["d1"]["prompt"].removesuffix("\nAnswer:")}]
    assert list(loaded("narrativeqa", "validation", folder)) == ["d2"]
    with pytest.raises(CalibrantError, match=r"left out: 1 without a text \(d3\): no question is left"):
        loaded("narrativeqa", "test", folder)


@pytest.mark.parametrize("name", ["qaps.csv", "third_party/wikipedia/summaries.csv"])
def test_narrativeqa_tables_without_their_columns(tmp_path, name):
    folder = narrativeqa_files(tmp_path)
    table(folder / name, [{"a": "1", "b": "2"}])
    with pytest.raises(CalibrantError, match=r"record 1 of '.*qaps.csv' is of another schema \(KeyError: '"):
        loaded("narrativeqa", "train", folder)


def test_narrativeqa_summaries_may_lie_beside_the_questions(tmp_path):
    folder = narrativeqa_files(tmp_path)
    summaries = folder / "third_party" / "wikipedia" / "summaries.csv"
    summaries.rename(folder / "summaries.csv")
    assert len(loaded("narrativeqa", "train", folder)) == 2
    (folder / "summaries.csv").unlink()
    with pytest.raises(CalibrantError, match=r"needs the summaries beside it.*narrativeqa"):
        loaded("narrativeqa", "train", folder)


NARRATIVE_RECORD = {
    "document": {"id": "d9", "kind": "movie", "text": "the whole story", "summary": {"text": "A plot.", "title": "T"}},
    "question": {"text": "What is it?", "tokens": ["What"]},
    "answers": [{"text": "a plot", "tokens": ["a"]}, {"text": "the plot", "tokens": ["the"]}],
}


def test_narrativeqa_parquet_of_the_hub(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([NARRATIVE_RECORD]), tmp_path / "data" / "train-00000-of-00024.parquet")
    row = loaded("narrativeqa", "train", tmp_path)["d9"]
    assert (row["references"], row["context"]) == (["a plot", "the plot"], "A plot.")
    (found,) = records(tmp_path / "data" / "train-00000-of-00024.parquet", ["document.id", "question.text"])
    assert found == {"document": {"id": "d9"}, "question": {"text": "What is it?"}}


def annotation(**answer):
    blank = {"unanswerable": False, "extractive_spans": [], "yes_no": None, "free_form_answer": "", "evidence": []}
    return {"answer": blank | answer, "annotation_id": "a", "worker_id": "w"}


def asked(name, *annotations):
    return {"question": f"{name}?", "question_id": name, "nlp_background": "two", "answers": list(annotations)}


PAPER = {
    "title": "A Title",
    "abstract": "An abstract.",
    "full_text": [
        {"section_name": "Introduction", "paragraphs": ["First.", "Second."]},
        {"section_name": "Empty", "paragraphs": ["", " "]},
        {"section_name": None, "paragraphs": ["Nameless."]},
    ],
    "qas": [
        asked("spans", annotation(extractive_spans=["BLEU", "ROUGE"]), annotation(free_form_answer="two of them")),
        asked("polar", annotation(yes_no=False), annotation(yes_no=True)),
        asked("open", annotation(unanswerable=True)),
        asked("nothing", annotation()),
    ],
}
PAPER_REFERENCES = {"spans": ["BLEU, ROUGE", "two of them"], "polar": ["No", "Yes"], "open": ["Unanswerable"]}


def test_qasper_json(tmp_path, caplog):
    (tmp_path / "qasper-dev-v0.3.json").write_text(json.dumps({"1234.5678": PAPER}))
    rows = loaded("qasper", "validation", tmp_path)
    assert {name: row["references"] for name, row in rows.items()} == PAPER_REFERENCES
    assert rows["open"]["context"] == "A Title\n\nAn abstract.\n\nIntroduction\nFirst.\nSecond.\n\nNameless."
    assert "left out: 1 without an answer (nothing)" in caplog.text
    (paper,) = records(tmp_path / "qasper-dev-v0.3.json")
    assert paper["id"] == "1234.5678"


def columns(rows):
    """Lists of records as the hub stores them: a record of lists."""
    return {key: [row[key] for row in rows] for key in rows[0]}


def test_qasper_columns_of_the_hub(tmp_path):
    asks = [question | {"answers": columns(question["answers"])} for question in PAPER["qas"]]
    record = PAPER | {"id": "1234.5678", "full_text": columns(PAPER["full_text"]), "qas": columns(asks)}
    (tmp_path / "qasper" / "test").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "qasper" / "test" / "0000.parquet")
    rows = loaded("qasper", "test", tmp_path)
    assert {name: row["references"] for name, row in rows.items()} == PAPER_REFERENCES
    assert rows["polar"]["context"].endswith("Introduction\nFirst.\nSecond.\n\nNameless.")


HOTPOT = {
    "question": "Are both old?",
    "answer": "yes",
    "type": "comparison",
    "level": "hard",
    "supporting_facts": [["A", 0]],
    "context": [["A", ["A is old.", " It stands."]], ["B", ["B is older."]]],
}


@pytest.mark.parametrize("schema", ["lists", "columns"])
def test_hotpotqa(tmp_path, schema):
    context = {"title": ["A", "B"], "sentences": [["A is old.", " It stands."], ["B is older."]]}
    record = HOTPOT | ({"_id": "h1"} if schema == "lists" else {"id": "h1", "context": context})
    (tmp_path / "hotpot_dev_distractor_v1.json").write_text(json.dumps([record]))
    row = loaded("hotpotqa", "validation", tmp_path)["h1"]
    assert row["context"] == "A\nA is old. It stands.\n\nB\nB is older."
    assert row["references"] == ["yes"]


def test_hotpotqa_f1_of_the_official_evaluation():
    reward = TASKS["hotpotqa"].reward
    assert reward("Yes.", ["yes"]) == 2
    assert reward("yes, they are", ["yes"]) == 0  # token F1 alone would give 2 x 1/2
    assert reward("yes", ["the yes men"]) == 0
    assert reward("New York City", ["New York"]) == pytest.approx(2 * 2 * 2 / 5)
    assert reward("", []) == 0


@pytest.mark.parametrize("name", READING)
def test_question_answering_rewards(name):
    task = TASKS[name]
    assert task.reward_batch(["a red house", "", "the house"], [["red house"], ["red house"], ["red house"]]) == [
        2.0,
        0.0,
        pytest.approx(2 * 2 * 1 / 3),
    ]
    assert task.correct_batch(["the house", "blue"], [["red house"], ["red house"]]) == [True, False]
    assert task.correct_batch(["house"], [["big red house"]]) == [False]  # F1 = 2 x 1 x 1/3 / (4/3) = 1/2
    assert task.correct_batch(["red old barn"], [["red barn by lake"]]) == [True]  # F1 = 2 x 2 / (3 + 4) = 4/7
    assert (task.reward_range, task.meaning) == ((0.0, 2.0), "answer")
    assert task.key("The House!") == task.key("house")

    assert task.extract("Answer: red house\nBecause it is.") == "red house"


def test_references_stand_on_one_line(tmp_path):
    row = {"id": "q", "question": "Which?", "context": "Text.", "answers": ["Level A\n - two"]}
    assert loaded("qasper", "test", lines(tmp_path / "test.jsonl", [row]))["q"]["references"] == ["Level A - two"]


# Mathematics


def test_the_answer_of_a_solution():
    assert maths.boxed_answer("so $x = \\boxed 9$.") == "9"
    assert maths.boxed_answer("\\boxed{}") == maths.boxed_answer("") == ""


MATH = {
    "problem": "Add 1/4 and 1/4.",
    "level": "Level 1",
    "type": "Algebra",
    "solution": "So \\boxed{1} no \\boxed{\\frac{1}{2}}.",
}


def test_math_folder_tree(tmp_path, caplog):
    for subject, number, record in (
        ("algebra", 1, MATH),
        ("algebra", 2, MATH | {"problem": "Add 2 and 2.", "solution": "\\boxed{4}"}),
        ("geometry", 1, MATH | {"solution": "It is \\boxed{}."}),
    ):
        folder = tmp_path / "MATH" / "train" / subject
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.json").write_text(json.dumps(record))
    rows = loaded("math500", "train", tmp_path)
    assert [row["references"] for row in rows.values()] in ([["\\frac{1}{2}"], ["4"]], [["4"], ["\\frac{1}{2}"]])
    assert "left out: 1 without an answer (math500-train-2)" in caplog.text


def test_math_lines_and_prompts(tmp_path):
    record = {"problem": "P?", "solution": "-", "answer": "7", "subject": "Algebra", "unique_id": "test/algebra/1.json"}
    lines(tmp_path / "train.jsonl", [MATH])
    (row,) = loaded("math500", "test", lines(tmp_path / "test.jsonl", [record])).values()
    assert (row["prompt_id"], row["references"]) == ("test/algebra/1.json", ["7"])
    assert row["prompt"] == f"{maths.INSTRUCTION}\n\nProblem: P?\nSolution:"
    assert row["messages"] == [
        {"role": "system", "content": maths.INSTRUCTION},
        {"role": "user", "content": "P?"},
    ]
    (row,) = loaded("math500", "train", tmp_path).values()
    assert row["references"] == ["\\frac{1}{2}"]


@pytest.mark.parametrize(
    ("name", "record", "reference"),
    [
        (
            "aime24",
            {"id": "60", "problem": "P?", "solution": "-", "answer": "204", "url": "-", "question": "P?"},
            "204",
        ),
        ("aime25", {"problem": "P?", "answer": 70, "id": 0}, "70"),
        ("amc23", {"id": 0, "problem": "P?", "answer": 27.0, "url": "-", "question": "P?"}, "27"),
        ("amc23", {"id": 0, "question": "P?", "answer": "27.5", "url": "-"}, "27.5"),
        ("minerva", {"problem": "P?", "solution": "so \\boxed{1.6} m", "type": "-", "idx": 3}, "1.6"),
        ("gsm8k", {"question": "P?", "answer": "9 * 2 = <<9*2=18>>18\n#### 1,018"}, "1018"),
    ],
)
def test_records_of_the_small_test_sets(tmp_path, name, record, reference):
    (row,) = loaded(name, "test", lines(tmp_path / name / "test.jsonl", [record]).parent).values()
    assert row["references"] == [reference]
    assert "P?" in row["prompt"]


OLYMPIAD = {"subfield": "Algebra", "context": None, "solution": ["-"], "unit": None, "answer_type": "Numerical"}


def test_olympiadbench(tmp_path):
    rows = [OLYMPIAD | {"id": i, "question": f"Question {i}", "final_answer": [f"${i}$"]} for i in range(40)]
    rows[7] |= {"final_answer": ["$7$", "$8$"], "context": "Let x be."}
    rows[9] |= {"unit": "km/h"}
    folder = lines(tmp_path / "test.jsonl", rows)
    train, test = loaded("olympiadbench", "train", folder), loaded("olympiadbench", "test", folder)
    assert (len(train), len(test)) == (34, 6)  # ceil(0.15 x 40) = 6
    both = train | test
    assert len(both) == 40
    assert both["7"]["references"] == ["$7$, $8$"]
    assert both["7"]["messages"][1]["content"] == "Let x be.\n\nQuestion 7"
    assert both["9"]["references"] == ["$9$", "$9$ km/h"]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=40, unique=True), st.randoms(use_true_random=False))
def test_the_designed_split_depends_on_the_questions_alone(numbers, rng):
    items = [Item("", f"Question  {n}", ["1"]) for n in numbers]
    test = {item.question for item in divide(items, "test")}
    assert len(test) == math.ceil(0.15 * len(items))
    assert {item.question for item in divide(items, "train")} == {item.question for item in items} - test
    again = [item._replace(id=str(i), question=item.question.replace("  ", " ")) for i, item in enumerate(items)]
    rng.shuffle(again)
    assert {item.question.replace(" ", "  ") for item in divide(again, "test")} == test


@pytest.mark.parametrize("total", [674, 675])
def test_the_designed_split_has_102_test_problems(total):
    assert len(divide([Item("", str(i), ["1"]) for i in range(total)], "test")) == 102


@pytest.fixture
def asked(monkeypatch):
    """Replaces the verifier; gives the list of pairs that it is asked for, all of which it says to be unscorable."""
    pairs = []

    def verify(batch):
        pairs.append(list(batch))
        return [None] * len(batch)

    monkeypatch.setattr(maths, "verifier", lambda: SimpleNamespace(verify=verify))
    return pairs


def test_maths_rewards_of_a_batch(asked):
    task = TASKS["math500"]
    answers = ["0.5", "3", "", "x+1", "0.25", "4", ""]
    golds = [["\\frac{1}{2}"], ["4"], ["4"], ["x + 1"], ["1", "1/4"], [], [""]]
    assert task.reward_batch(answers, golds) == [2.0, None, None, 2.0, 2.0, None, None]
    assert asked == [
        [("3", ["4"]), ("", ["4"]), ("4", []), ("", [""])]
    ]  # one call, and only for what the keys leave open
    assert task.correct_batch(["4", "5"], [["4"], ["4"]]) == [True, None]
    assert task.reward_batch(["4"], [["4"]]) == [2.0]
    assert len(asked) == 2
    assert math.isnan(task.reward("3", ["4"]))
    assert task.correct("3", ["4"]) is False


def test_maths_rewards_by_the_verifier():
    task = TASKS["olympiadbench"]
    answers = [r"\frac{\sqrt{4}}{4}", "3", "", "{2, 1}", "x^2"]
    golds = [["1/2"], ["4"], ["4"], ["1, 2"], ["x"]]
    assert task.reward_batch(answers, golds) == [2.0, 0.0, 0.0, 2.0, 0.0]
    assert task.correct_batch(answers, golds) == [True, False, False, True, False]
    assert (task.reward(answers[0], golds[0]), task.reward(answers[1], golds[1])) == (2.0, 0.0)
    assert task.correct(answers[0], golds[0]) is True
    maths.verifier().close()


def test_clusters_of_solutions_are_of_equal_answers():
    half = ["so \\boxed{\\frac{1}{2}}", "The answer is 0.5.", "\\boxed{\\frac{\\sqrt{4}}{4}}"]
    groups = [[*half, "\\boxed{2}", "", ""], ["", "", "\\boxed{2}", *half]]
    assert TASKS["math500"].cluster(groups).tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 3, 3]]
    maths.verifier().close()


def test_the_key_of_a_solution_is_its_answer():
    key = TASKS["gsm8k"].key
    assert key("First 2, so \\boxed{\\frac{2}{4}}") == key("The answer is 0.5.") == key("1/2")
    assert key("x+1") == key("So \\boxed{x + 1}")
    assert key("x+1") != key("1")
    assert key("") == ""


def test_every_task_has_one_that_trains_for_it():
    assert training_task(TASKS["aime24"]) is TASKS["olympiadbench"]
    assert training_task(TASKS["gsm8k"]) is TASKS["gsm8k"]
    for task in TASKS.values():
        assert ("train" in task.splits) == (task.train_task is None)
        assert "train" in training_task(task).splits


# Where rows come from


@pytest.mark.parametrize("name", FROM_FILES)
@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz"])
def test_every_task_reads_the_plain_schema(tmp_path, name, end):
    task = TASKS[name]
    split = task.splits[-1]
    rows = [
        {"id": f"q{i}", "question": f"How {i}?", "context": f"Text {i}.", "answers": [f"{i}", " "]} for i in range(3)
    ]
    found = loaded(name, split, lines(tmp_path / name / f"{split}{end}", rows).parent)
    assert len(found) == (1 if name == "olympiadbench" else 3)  # whose one file serves both splits
    for row in found.values():
        assert row["references"] == [row["prompt_id"][1:]]
        assert ("context" in row) == (task.kind == "reading")


@pytest.mark.parametrize("other", ["valid", "dev"])
def test_other_names_of_the_validation_split(tmp_path, other):
    rows = [{"question": "How?", "context": "Text.", "answers": ["so"]}]
    assert list(loaded("hotpotqa", "validation", lines(tmp_path / f"{other}.jsonl", rows))) == ["hotpotqa-validation-0"]


def test_the_seed_orders_and_the_size_cuts(tmp_path):
    rows = [{"id": str(i), "question": f"{i}?", "answers": [str(i)]} for i in range(30)]
    folder = lines(tmp_path / "test.jsonl", rows)
    load = lambda size, seed: [row["prompt_id"] for row in TASKS["amc23"].load("test", size, seed, data_dir=folder)]  # noqa: E731
    assert load(None, 0) == load(1000, 0) == load(30, 0)
    assert sorted(load(None, 0), key=int) == [str(i) for i in range(30)]
    assert load(10, 0) == load(None, 0)[:10]
    assert load(10, 0) != load(10, 1)
    assert load(0, 0) == []


def test_equal_ids_are_told_apart(tmp_path):
    rows = [{"id": "a", "question": q, "answers": ["1"]} for q in "xyz"]
    assert sorted(loaded("amc23", "test", lines(tmp_path / "test.jsonl", rows))) == ["a", "a#2", "a#3"]


def test_what_is_left_out_is_counted_and_named(tmp_path, caplog):
    rows = [
        {"id": "good", "question": "How?", "context": "Text.", "answers": ["so"]},
        {"id": "mute", "question": "How?", "context": "Text.", "answers": []},
        {"id": "blank", "question": "How?", "context": "Text.", "answers": ["", " "]},
        {"id": "empty", "question": " ", "context": "Text.", "answers": ["so"]},
        {"id": "bare", "question": "How?", "answers": ["so"]},
    ]
    folder = lines(tmp_path / "test.jsonl", rows)
    items, report = read_items("qasper", TASKS["qasper"].source, "test", folder)
    assert [item.id for item in items] == ["good"]
    assert report.rows == 1
    assert report.left_out == {
        "without an answer": ["mute", "blank"],
        "without a question": ["empty"],
        "without a text": ["bare"],
    }
    assert caplog.records[-1].levelname == "WARNING"
    assert caplog.records[-1].message == str(report)
    assert "1 questions from" in str(report)
    assert "2 without an answer (mute, blank); 1 without a question (empty)" in str(report)


def test_a_long_list_of_names_is_shortened(tmp_path, caplog):
    rows = [{"id": str(i), "question": "How?", "answers": ["1"][: i == 0]} for i in range(9)]
    loaded("amc23", "test", lines(tmp_path / "test.jsonl", rows))
    assert "8 without an answer (1, 2, 3, 4, 5, ...)" in caplog.text


@pytest.mark.parametrize("name", FROM_FILES)
def test_missing_files_say_what_where_and_from_where(tmp_path, name):
    task = TASKS[name]
    with pytest.raises(CalibrantError) as error:
        task.load(task.splits[-1], None, 0, data_dir=tmp_path)
    for part in (str(tmp_path), *task.source.files[task.splits[-1]], task.source.schema, task.source.url, "JSON Lines"):
        assert part in str(error.value)
    with pytest.raises(CalibrantError, match="is no folder"):
        task.load(task.splits[-1], None, 0, data_dir=tmp_path / "nowhere")
    with pytest.raises(CalibrantError, match="has no split 'dev'"):
        task.load("dev", None, 0, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("gsm8k", {"text": "no question"}),
        ("aime24", {"problem": "P?"}),
        ("olympiadbench", {"id": 1, "question": "P?", "answer": "1"}),
        ("minerva", {"problem": "P?", "solution": None}),
        ("hotpotqa", {"question": "P?", "answer": "1"}),
        ("qasper", {"title": "T", "abstract": "A", "full_text": None, "qas": []}),
    ],
)
def test_another_schema_is_named_with_its_record(tmp_path, name, record):
    split = TASKS[name].splits[-1]
    with pytest.raises(CalibrantError, match=r"record 1 of '.*jsonl' is of another schema .*; expected"):
        loaded(name, split, lines(tmp_path / f"{split}.jsonl", [record]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"question": "a"\n', "line 1"),
        (b'{"question": "a", "answers": ["b"]}\n[1]\n', "line 2 is a list"),
        (b"\xff\xfe", "decode"),
        (b"", "no question is left"),
    ],
)
def test_broken_files(tmp_path, content, said):
    (tmp_path / "test.jsonl").write_bytes(content)
    with pytest.raises(CalibrantError, match=said):
        loaded("amc23", "test", tmp_path)


def test_broken_archives_tables_and_other_files(tmp_path):
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "bad.csv").write_text('a,b\n"open')
    (tmp_path / "data.pkl").write_bytes(b"\x80\x04.")
    (tmp_path / "text.json").write_text('["a"]')
    for name in ("test.jsonl.gz", "bad.parquet", "bad.csv", "text.json"):
        with pytest.raises(CalibrantError, match=rf"cannot read '.*{name}'"):
            list(records(tmp_path / name))
    with pytest.raises(CalibrantError, match="is no data file"):
        list(records(tmp_path / "data.pkl"))


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_tasks_refuse_a_folder(tmp_path, name):
    with pytest.raises(CalibrantError, match=f"'{name}' come with the package; leave out --data-dir"):
        TASKS[name].load("train", 1, 0, data_dir=tmp_path)


def test_the_hub_is_asked_for_files_alone(monkeypatch):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((*arguments, options))
        return datasets.Dataset.from_list([NARRATIVE_RECORD] if "narrativeqa" in arguments[0] else [MATH])

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read_columns = []
    choose = datasets.Dataset.select_columns
    monkeypatch.setattr(
        datasets.Dataset, "select_columns", lambda self, names: (read_columns.append(names), choose(self, names))[1]
    )
    (row,) = TASKS["narrativeqa"].load("validation", None, 0)
    assert read_columns == [["document.id", "document.summary.text", "question.text", "answers"]]  # not the story
    assert (row["prompt_id"], row["context"], row["references"]) == ("d9", "A plot.", ["a plot", "the plot"])
    assert calls == [("deepmind/narrativeqa", None, {"split": "validation", "revision": "main"})]
    calls.clear()
    assert len(TASKS["math500"].load("train", None, 0)) == 7
    assert {call[1] for call in calls} >= {"algebra", "precalculus"}
    assert {call[0] for call in calls} == {"EleutherAI/hendrycks_math"}


def test_a_hub_out_of_reach_is_said_at_once(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(CalibrantError, match=r"math-ai/amc23 .*cannot be reached; give --data-dir .*amc23"):
        TASKS["amc23"].load("test", None, 0)
    assert datasets.config.HF_HUB_OFFLINE


def test_a_hub_that_refuses_says_why(monkeypatch):
    def load_dataset(*_arguments, **_options):
        raise RuntimeError("Dataset scripts are no longer supported\nsecond line")

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        CalibrantError, match=r"could not be loaded \(Dataset scripts are no longer supported\); give --data"
    ):
        TASKS["qasper"].load("test", None, 0)


# Prompts that fit


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("demo")


@pytest.fixture(scope="module")
def chat(tokenizer):
    chat = load_tokenizer("demo")
    chat.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return chat


def long_row(words):
    context = " ".join(f"word{i}" for i in range(words))
    return {
        "prompt_id": "q",
        "prompt": f"Read.\n\n{context}\n\nQuestion: Why?\nAnswer:",
        "messages": [{"role": "user", "content": f"Read.\n\n{context}\n\nQuestion: Why?"}],
        "references": ["so"],
        "context": context,
    }


def test_the_form_of_a_prompt(tokenizer, chat):
    row = long_row(3)
    assert prompt_for(row, tokenizer) == row["prompt"]
    assert prompt_for(row, chat) == row["messages"]
    plain = {"prompt_id": "p", "prompt": "Why?", "references": []}
    assert prompt_for(plain, chat) == [{"role": "user", "content": "Why?"}]
    assert prompt_tokens(plain, tokenizer) == len(tokenizer("Why?")["input_ids"])
    assert prompt_tokens(plain, chat) == len(tokenizer("[user] Why?\n[assistant] ")["input_ids"])


@pytest.mark.parametrize("form", ["plain", "turns"])
@settings(max_examples=40, deadline=None)
@given(words=st.integers(0, 300), limit=st.integers(40, 500))
def test_a_text_is_cut_at_its_end_as_little_as_needed(form, words, limit, tokenizer, chat):
    own = chat if form == "turns" else tokenizer
    row = long_row(words)
    before = json.dumps(row)
    fitted, cut = fit(row, own, limit)
    assert json.dumps(row) == before
    assert prompt_tokens(fitted, own) <= limit
    assert cut == (prompt_tokens(row, own) > limit)
    assert row["context"].startswith(fitted["context"])
    assert fitted["context"].split() == row["context"].split()[: len(fitted["context"].split())]
    assert fitted["prompt"] == f"Read.\n\n{fitted['context']}\n\nQuestion: Why?\nAnswer:"
    assert fitted["messages"][0]["content"] == f"Read.\n\n{fitted['context']}\n\nQuestion: Why?"
    if cut:  # two words more would not have fitted
        more = " ".join(row["context"].split()[: len(fitted["context"].split()) + 2])
        longer = {
            "prompt": f"Read.\n\n{more}\n\nQuestion: Why?\nAnswer:",
            "messages": [{"role": "user", "content": f"Read.\n\n{more}\n\nQuestion: Why?"}],
        }
        assert prompt_tokens(longer, own) > limit


def test_cut_texts_are_counted(tokenizer):
    rows, cut, left_out = fit_all([long_row(5), long_row(200), long_row(300)], tokenizer, 100)
    assert (cut, left_out) == (2, [])
    assert rows[0] == long_row(5)
    assert 5 < len(rows[1]["context"].split()) == len(rows[2]["context"].split()) < 100


def test_questions_that_cannot_fit_are_left_out_and_named(tokenizer, caplog):
    rows = [{"prompt_id": f"p{n}", "prompt": "Why? " * n, "references": []} for n in (1, 200, 2, 300, 400, 500)]
    assert [row["prompt_id"] for row in prompts.fit_to(rows, tokenizer, 50, 10)] == ["p1", "p2"]
    assert "4 of 6 questions take more than 50 tokens" in caplog.text and "(p200, p300, p400, ...)" in caplog.text
    with pytest.raises(CalibrantError, match=r"1 of 1 questions.*\(p200\); raise --max-prompt-length"):
        prompts.fit_to(rows[1:2], tokenizer, 50, 10)


def test_a_model_without_a_chat_template_is_named_once(tokenizer, chat, caplog):
    turns = {"prompt_id": "p", "prompt": "Why?", "references": [], "messages": [{"role": "user", "content": "Why?"}]}
    prompts._warn_once.cache_clear()
    for _ in range(2):
        prompts.fit_to([turns], tokenizer, 50, 10)
    assert caplog.text.count("no chat template: its prompts are plain text") == 1
    prompts._warn_once.cache_clear()
    caplog.clear()
    prompts.fit_to([turns], chat, 100, 10)
    prompts.fit_to([{"prompt_id": "p", "prompt": "Why?", "references": []}], tokenizer, 50, 10)
    assert caplog.text == ""


def test_a_question_that_cannot_fit(tokenizer):
    with pytest.raises(CalibrantError, match=r"'q' takes \d+ tokens without its context, more than max_prompt_tok"):
        fit(long_row(20), tokenizer, 5)
    with pytest.raises(CalibrantError, match="max_prompt_tokens = 2"):
        fit({"prompt_id": "p", "prompt": "Why on earth is that so?", "references": []}, tokenizer, 2)


class Words:
    """A tokenizer that cannot say where its tokens begin."""

    is_fast = False
    chat_template = None

    def __call__(self, text):
        return {"input_ids": text.split()}


def test_a_tokenizer_without_offsets():
    fitted, cut = fit(long_row(50), Words(), 20)
    assert cut
    assert len(fitted["prompt"].split()) == 20
    assert fitted["context"] == long_row(16)["context"]


# arithmetic


@pytest.mark.parametrize("split", ARITHMETIC.splits)
def test_arithmetic_rows(split):
    load = ARITHMETIC.load
    rows = load(split, 300, 1)
    assert rows == load(split, 300, 1)
    assert rows[:50] == load(split, 50, 1)
    assert {row["prompt"] for row in rows} != {row["prompt"] for row in load(split, 300, 2)}
    assert len({row["prompt"] for row in rows}) == len({row["prompt_id"] for row in rows}) == 300
    assert all(row["prompt"].endswith("\nSolution:") and len(row["references"]) == 1 for row in rows)
    assert all(row["prompt"].removesuffix("\nSolution:") in row["messages"][0]["content"] for row in rows)


def test_arithmetic_sizes():
    assert [len(ARITHMETIC.load(split, None, 0)) for split in ARITHMETIC.splits] == [4000, 500]
    assert ARITHMETIC.load("train", 0, 0) == []
    with pytest.raises(CalibrantError, match="arithmetic has no split 'dev'; it has train and test"):
        ARITHMETIC.load("dev", 1, 0)


def opening(row):
    return frozenset(re.findall(r"\d+", row["prompt"])[:2])


def test_no_training_problem_opens_like_a_test_problem():
    train = {opening(row) for row in ARITHMETIC.load("train", 4000, 0)}
    rows = ARITHMETIC.load("test", 3000, 0)  # enough that some would be met twice
    test = {opening(row) for row in rows}
    assert len({row["prompt"] for row in rows}) == 3000
    assert not train & test
    assert len(test) > 100


@settings(deadline=None)
@given(st.sampled_from(["train", "test"]), st.sampled_from(problems.STEPS), st.integers())
def test_a_solution_is_right_and_stays_small(split, steps, seed):
    rng = random.Random(seed)
    problem = problems.problem(split, steps, rng)
    written = problems.solution(problem)
    lines = re.findall(r"(-?\d+) ([-+*/]) (\d+) = (-?\d+)\.", written)
    assert len(lines) == len(problem.steps) == steps
    assert all(problems.APPLY[op](int(a), int(b)) == int(c) for a, op, b, c in lines)
    assert all(int(a) == int(b) * int(c) for a, op, b, c in lines if op == "/")
    assert all(later[0] == line[3] for line, later in pairwise(lines))
    assert all(1 <= int(line[3]) <= problems.LARGEST for line in lines)
    assert all(sentence.sentence in problem.text and sentence.sentence in written for sentence in problem.steps)
    assert ARITHMETIC.extract(written) == str(problem.answer) == lines[-1][3]
    assert ARITHMETIC.reward(ARITHMETIC.extract(written), [str(problem.answer)]) == 2
    assert ARITHMETIC.key(written) == ARITHMETIC.key(str(problem.answer))
    noisy = problems.noisy_solution(problem, rng, slip_rate=1.0)
    assert noisy != written
    assert re.fullmatch(r"(?:.*\. )?The answer is -?\d+\.", noisy)
    assert problems.noisy_solution(problem, rng, slip_rate=0.0) == written


def test_noisy_solutions_are_right_about_half_the_time():
    rng = random.Random(0)
    share = []
    for steps in problems.STEPS:
        made = [problems.problem("train", steps, rng) for _ in range(1000)]
        right = [ARITHMETIC.extract(problems.noisy_solution(p, rng)) == str(p.answer) for p in made]
        share.append(sum(right) / len(right))
        assert share[-1] == pytest.approx(0.75**steps, abs=0.05)
    assert 0.3 < sum(share) / 4 < 0.6


def test_slips_are_of_three_kinds():
    tom = problems.Problem(3, (problems.Step("Tom has 3 boxes of 4 pens.", "*", 4),), "How many?")
    rng = random.Random(0)
    made = Counter(problems.noisy_solution(tom, rng, slip_rate=1.0) for _ in range(3000))
    skipped = made.pop("The answer is 3.")
    operation = sum(n for text, n in made.items() if " * " not in text)
    assert {text.split(". ")[1] for text in made} == {
        "3 * 4 = 2", "3 * 4 = 11", "3 * 4 = 13", "3 * 4 = 22", "3 + 4 = 7", "3 - 4 = -1",
    }  # fmt: skip
    assert skipped / 3000 == pytest.approx(1 / 3, abs=0.04)
    assert operation / 3000 == pytest.approx(1 / 3, abs=0.04)


def test_the_only_step_gone_wrong_never_ends_right():
    twice = problems.Problem(2, (problems.Step("Tom has 2 boxes of 2 pens.", "*", 2),), "How many?")  # 2 + 2 = 2 * 2
    rng = random.Random(0)
    assert all(ARITHMETIC.extract(problems.noisy_solution(twice, rng, slip_rate=1.0)) != "4" for _ in range(300))


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("3 * 4 = 12. The answer is 12.", "12", True),
        ("The answer is 11. No, the answer is 12", "12", True),
        ("3 * 4 = 12.", "", False),
        ("The answer is 12.0 pens.", "12.0", True),
        ("The answer is -12.", "-12", False),
        ("The answer is", "", False),
        ("", "", False),
    ],
)
def test_arithmetic_answers(completion, answer, right):
    assert ARITHMETIC.extract(completion) == answer
    assert ARITHMETIC.reward_batch([answer], [["12"]]) == [2.0 * right]
    assert ARITHMETIC.correct_batch([answer], [["12"]]) == [right]


# The table, and all tasks alike


def test_the_table(capsys):
    assert main(["tasks"]) == 0
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(table) == list(TASKS)
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
