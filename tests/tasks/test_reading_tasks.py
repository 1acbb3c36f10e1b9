"""Question answering"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders_tasks import NARRATIVE_RECORD, READING, asked, lines, loaded, table

from calibrant.errors import CalibrantError
from calibrant.tasks import TASKS
from calibrant.tasks.files import records

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
