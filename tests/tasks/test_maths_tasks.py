"""Mathematics"""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
from builders_tasks import MATH, lines, loaded
from hypothesis import given
from hypothesis import strategies as st

from calibrant.tasks import TASKS, maths
from calibrant.tasks.olympiadbench import divide
from calibrant.tasks.sources import Item

# Mathematics


def test_the_answer_of_a_solution():
    assert maths.boxed_answer("so $x = \\boxed 9$.") == "9"
    assert maths.boxed_answer("\\boxed{}") == maths.boxed_answer("") == ""


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


def test_deepscaler(tmp_path):
    """The file of the hub is one list; tested on MATH-500, in its own folder or that of the task."""
    records = [{"problem": "P?", "answer": "-\\frac{2}{3}"}, {"problem": "Q?", "answer": 7}]
    (tmp_path / "deepscaler.json").write_text(json.dumps([record | {"solution": ""} for record in records]))
    assert sorted(row["references"] for row in loaded("deepscaler", "train", tmp_path).values()) == [
        ["-\\frac{2}{3}"],
        ["7"],
    ]
    record = {"problem": "R?", "solution": "-", "answer": "8", "unique_id": "test/algebra/1.json", "level": 2}
    lines(tmp_path / "MATH" / "train.jsonl", [MATH])  # of another task
    lines(tmp_path / "MATH" / "test.jsonl", [record])
    assert list(loaded("deepscaler", "test", tmp_path)) == ["test/algebra/1.json"]
    assert len(loaded("deepscaler", "train", tmp_path)) == 2


def test_openr1_math_without_proofs(tmp_path, caplog):
    columns = {"solution": "-", "problem_type": "Algebra", "source": "olympiads", "generations": ["long"] * 2}
    kinds = [("5", "math-word-problem"), ("proof", "proof"), ("B", "MCQ"), ("not found", "math-word-problem")]
    records = [
        columns | {"problem": f"P{i}?", "answer": answer, "question_type": kind, "uuid": f"u{i}"}
        for i, (answer, kind) in enumerate([*kinds, (None, "math-word-problem"), ("7", "proof")])
    ]
    (tmp_path / "data").mkdir()
    pd.DataFrame(records).to_parquet(tmp_path / "data" / "train-00000-of-00010.parquet")
    found = loaded("openr1_math", "train", tmp_path)
    assert {name: row["references"] for name, row in found.items()} == {"u0": ["5"], "u2": ["B"]}
    assert "left out: 4 without an answer" in caplog.text


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
def verifier_calls(monkeypatch):
    """Replaces the verifier by one that finds every pair unscorable; the list of its calls."""
    pairs = []

    def verify(batch):
        pairs.append(list(batch))
        return [None] * len(batch)

    monkeypatch.setattr(maths, "verifier", lambda: SimpleNamespace(verify=verify))
    return pairs


def test_maths_rewards_of_a_batch(verifier_calls):
    task = TASKS["math500"]
    answers = ["0.5", "3", "", "x+1", "0.25", "4", ""]
    golds = [["\\frac{1}{2}"], ["4"], ["4"], ["x + 1"], ["1", "1/4"], [], [""]]
    assert task.reward_batch(answers, golds) == [2.0, None, None, 2.0, 2.0, None, None]
    assert verifier_calls == [
        [("3", ["4"]), ("", ["4"]), ("4", []), ("", [""])]
    ]  # one call, and only for what the keys leave open
    assert task.correct_batch(["4", "5"], [["4"], ["4"]]) == [True, None]
    assert task.reward_batch(["4"], [["4"]]) == [2.0]
    assert len(verifier_calls) == 2
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
