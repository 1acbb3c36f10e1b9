"""Cells of one's own data: each is read, or refused in one sentence with file, row and column."""

import json
import math

import pandas as pd
import pytest
from builders_tasks import lines
from test_own_data import everything, refusal, table

from calibrant.errors import CalibrantError
from calibrant.tasks.cells import ChoiceOptions, chosen

GOOD = {"question": "Who?", "context": "Tom.", "answers": ["Tom"]}


def read(tmp_path, task="reading", **row):
    (made,) = everything(lines(tmp_path / "d.jsonl", [GOOD | row]) / "d.jsonl", task).values()
    return made


@pytest.mark.parametrize(
    ("answers", "references"),
    [
        ("Tom", ["Tom"]), (["Tom", " the Tom\n", ""], ["Tom", "the Tom"]), (7, ["7"]), (7.0, ["7"]), (0, ["0"]),
        ([1, 2.5, None], ["1", "2.5"]), ({"text": ["Tom", "Tim"], "answer_start": [0, 3]}, ["Tom", "Tim"]),
        ("Zoë 東京 🎉", ["Zoë 東京 🎉"]), ("[0, 1]", ["[0, 1]"]), ('["a", "b"]', ['["a", "b"]']), (True, ["True"]),
        ("a\ud800", ["a?"]),
    ],
)  # fmt: skip
def test_answers_are_texts_or_lists_of_texts(tmp_path, answers, references):
    assert read(tmp_path, answers=answers)["references"] == references


@pytest.mark.parametrize(
    ("cell", "references"),
    [
        ("Tom", ["Tom"]), ('["Tom", "Tim"]', ["Tom", "Tim"]), ("007", ["007"]), ("NA", ["NA"]), ("[0, 1]", ["[0, 1]"]),
        ("[x, y)", ["[x, y)"]), ('{"text": ["Tom"]}', ["Tom"]),
    ],
)  # fmt: skip
def test_lists_in_csv_files_are_json(tmp_path, cell, references):
    file = table(tmp_path / "d.csv", ["question", "context", "answers"], ["Who?", "Tom.", cell])
    assert everything(file)["d-1"]["references"] == references


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answers": [["Tom"]]}, "column 'answers', holds a nested list; it has to be a text or a list of texts"),
        ({"answers": {"a": 1}}, "column 'answers', holds a dict ({'a': 1}); it has to be a text or a list of texts"),
        ({"question": ["Who?"]}, "column 'question', holds a list (['Who?']); it has to be a text"),
        ({"question": {"text": "Who?"}}, "column 'question', holds a dict"),
        ({"context": [["a"]]}, "column 'context', holds a nested list"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named(tmp_path, row, said):
    file = lines(tmp_path / "d.jsonl", [GOOD, GOOD, GOOD | row]) / "d.jsonl"
    assert f"row 3 of '{file}', {said}" in refusal(file)


def test_a_list_that_is_no_json_is_not_taken_for_an_answer(tmp_path):
    file = table(tmp_path / "d.csv", ["question", "context", "answers"], ["Who?", "Tom.", "['Tom', 'Tim']"])
    assert f"row 1 of '{file}', column 'answers', looks like a list and is no JSON; write it as" in refusal(file)


EMPTY = [None, "", "  ", math.nan]
LISTS = [[], [""], [None]]


@pytest.mark.parametrize(
    ("column", "empty"),
    [(column, x) for column in ("question", "context", "answers") for x in EMPTY + LISTS * (column != "question")],
)
def test_rows_with_an_empty_cell_are_left_out_and_counted(tmp_path, caplog, column, empty):
    file = lines(tmp_path / "d.jsonl", [GOOD, GOOD | {column: empty}]) / "d.jsonl"
    assert list(everything(file)) == ["d-1"]
    assert f"1 questions from '{file}'; left out: 1 without '{column}' (d-2)" in caplog.text


def test_missing_values_of_a_table(tmp_path):
    frame = pd.DataFrame({"question": ["a?", None, "c?"], "context": ["x", "y", "z"], "answers": [1, 2, math.nan]})
    frame.to_parquet(tmp_path / "d.parquet")
    frame.to_csv(tmp_path / "d.csv", index=False)
    for name in ("d.parquet", "d.csv"):
        assert list(everything(tmp_path / name)) == ["d-1"]


def test_repeated_rows_and_ids_stay_with_names_of_their_own(tmp_path):
    file = lines(tmp_path / "d.jsonl", [GOOD | {"id": 7}, GOOD | {"id": 7}, GOOD]) / "d.jsonl"
    assert sorted(everything(file)) == ["7", "7#2", "d-3"]


def test_very_long_cells(tmp_path):
    context = "Tom was here. " * 40_000
    for file in (
        table(tmp_path / "d.csv", ["question", "context", "answers"], ["Who?", context, "Tom"]),
        lines(tmp_path / "d.jsonl", [GOOD | {"context": context}]) / "d.jsonl",
    ):
        assert everything(file)["d-1"]["context"] == context.strip()


def test_tables_of_another_shape(tmp_path):
    file = table(tmp_path / "d.csv", ["question", "context", "answers"], ["Who?", "Tom.", "Tom"], ["Who?", "Tom."])
    assert f"cannot read '{file}' (row 2 has another number of cells than the header)" in refusal(file)
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbfquestion,context,answers\nWho?,Tom.,Tom\n")
    assert list(everything(tmp_path / "bom.csv")) == ["bom-1"]
    (tmp_path / "latin.csv").write_bytes(b"question,context,answers\nWh\xf6?,Tom.,Tom\n")
    assert "can't decode byte" in refusal(tmp_path / "latin.csv")


# Columns


def test_columns_by_name_nested_or_together(tmp_path):
    row = {"q": {"text": "Who?"}, "parts": ["One.", "Two."], "a1": "Tom", "a2": "Tim", "x.y": "dot"}
    file = lines(tmp_path / "d.jsonl", [row]) / "d.jsonl"
    columns = {"question": "q.text", "context": "parts", "answers": "a1+a2", "id": "x.y"}
    made = everything(file, columns=columns)["dot"]
    assert "Question: Who?" in made["prompt"] and made["references"] == ["Tom", "Tim"]
    assert made["context"] == "One.\n\nTwo." and made["context"] in made["prompt"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"quest": "question"},
            "--columns: 'quest' (did you mean 'question'?) is none of question, context, answers, id",
        ),
        (
            {"question": "qestion"},
            "no column 'qestion' (did you mean 'question'?), which --columns names for 'question'",
        ),
        ({"answers": "a+b"}, "no column 'a+b'"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, said):
    assert said in refusal(lines(tmp_path / "d.jsonl", [GOOD]) / "d.jsonl", columns=columns)


def test_a_column_that_is_missing_is_named_with_those_that_there_are(tmp_path):
    file = lines(tmp_path / "d.jsonl", [{"questions": "Who?", "answers": "Tom", "context": "Tom."}]) / "d.jsonl"
    said = refusal(file)
    assert "has no column 'question' (the question) (did you mean 'questions'?)" in said
    assert "it has 'questions', 'answers', 'context'; name yours with --columns question=COLUMN" in said


# Multiple choice

CITIES = ["Paris", "Nice", "Lyon"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("Nice", "B"), ("C", "C"), ("a", "A"), (0, "A"), (2, "C"), ("1", "B"), (["Lyon"], "C"), (1.0, "B")],
)
def test_the_right_option_by_text_letter_or_number(tmp_path, answer, letter):
    row = {"question": "Which?", "options": CITIES, "answer": answer}
    (made,) = everything(lines(tmp_path / "d.jsonl", [row]) / "d.jsonl", "choice").values()
    assert made["references"] == [letter]
    assert "Question: Which?\nA. Paris\nB. Nice\nC. Lyon\nAnswer:" in made["prompt"]


def test_numbers_as_options_and_labels_of_the_data():
    assert chosen("2", ChoiceOptions(["1", "2", "4"], ["A", "B", "C"])) == "B"  # the text comes first
    assert chosen(2, ChoiceOptions(["1", "2", "4"], ["A", "B", "C"])) == "C"  # a number counts from 0
    assert chosen("2", ChoiceOptions(["x", "y"], ["1", "2"])) == "B"  # as ARC labels some options


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "Rome"}, "column 'answer', holds 'Rome', which is none of the 3 options"),
        ({"answer": 3}, "column 'answer', holds '3', which is none of the 3 options"),
        ({"answer": -1}, "column 'answer', holds '-1'"),
        ({"options": ["x"]}, "column 'options', holds 1 options; it has to be a list of 2 to 26"),
        ({"options": {"text": ["x", "y"], "label": ["1"]}}, "labels and texts of different numbers"),
        ({"options": [["x"], ["y"]]}, "column 'options', holds a nested list"),
    ],
)
def test_options_and_answers_that_do_not_fit(tmp_path, row, said):
    file = lines(tmp_path / "d.jsonl", [{"question": "Which?", "options": CITIES, "answer": 0} | row]) / "d.jsonl"
    assert said in refusal(file, "choice")


def test_options_in_columns_of_their_own_and_as_json(tmp_path):
    file = table(tmp_path / "d.csv", ["question", "w", "x", "answer"], ["Which?", "Paris", "Nice", "Nice"])
    (row,) = everything(file, "choice", columns={"options": "w+x"}).values()
    assert row["references"] == ["B"]
    file = table(tmp_path / "e.csv", ["question", "options", "answer"], ["Which?", json.dumps(CITIES), "B"])
    assert everything(file, "choice")["e-1"]["references"] == ["B"]


# Chat


def test_prompts_are_texts_or_turns(tmp_path):
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    file = lines(tmp_path / "d.jsonl", [{"prompt": "Hello"}, {"prompt": turns, "answers": "Hi"}]) / "d.jsonl"
    rows = everything(file, "chat")
    assert rows["d-1"]["messages"] == turns[1:] and rows["d-1"]["references"] == []
    assert rows["d-2"]["messages"] == turns and rows["d-2"]["prompt"] == "Be kind.\n\nHello"
    assert rows["d-2"]["references"] == ["Hi"]
    file = table(tmp_path / "d.csv", ["messages"], [json.dumps(turns)])
    assert everything(file, "chat")["d-1"]["messages"] == turns


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            "ends with a turn of the assistant",
        ),
        ([{"role": "user"}], "holds a list that is no conversation"),
        (["x"], "holds a list that is no conversation"),
        ({"role": "user"}, "holds a dict"),
    ],
)
def test_prompts_that_are_none(tmp_path, prompt, said):
    assert f"column 'prompt', {said}" in refusal(lines(tmp_path / "d.jsonl", [{"prompt": prompt}]) / "d.jsonl", "chat")


def test_mathematics_takes_final_answers_out_of_solutions(tmp_path):
    rows = [{"problem": f"P{i}?", "solution": s} for i, s in enumerate(["so\n#### 1,800", r"\boxed{\frac12}", "x + 1"])]
    made = everything(lines(tmp_path / "d.jsonl", rows) / "d.jsonl", "maths")
    assert [made[f"d-{i}"]["references"] for i in (1, 2, 3)] == [["1800"], [r"\frac12"], ["x + 1"]]
    with pytest.raises(CalibrantError, match="no row is left"):
        everything(lines(tmp_path / "e.jsonl", [{"problem": "P?", "solution": ""}]) / "e.jsonl", "maths")
