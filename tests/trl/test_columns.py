"""Columns of other people's data sets: what is read, what is refused before the first step, and what is written."""

import errno
from datetime import datetime
from decimal import Decimal

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Json, Value
from PIL import Image as Picture
from test_trainer import arguments, train, vowels

from calibrant.errors import CalibrantError
from calibrant.rollouts import read_rollouts
from calibrant.trl import CalibratedGRPOTrainer
from calibrant.trl.columns import check_data, read_rows, settle_prompts


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Norway", ["Norway"]), (["Oslo", "Bergen"], ["Oslo", "Bergen"]), (("a",), ["a"]), (5, ["5"]), (5.0, ["5"]),
        (0.5, ["0.5"]), ([1, 2.5, "x"], ["1", "2.5", "x"]), (None, None), (float("nan"), None), ([], []), (0, ["0"]),
        (["a", None], ["a"]), (np.int64(3), ["3"]), (np.array(["a", "b"]), ["a", "b"]),
        (torch.tensor([1, 2]), ["1", "2"]), (torch.tensor(4), ["4"]),
        (Decimal("1.5"), ["1.5"]), ("", [""]), ("a\ud800", ["a?"]),
    ],
)  # fmt: skip
def test_references_are_lists_of_texts(given, expected):
    (row,) = read_rows([{"prompt": "p", "references": given}])
    assert row.references == expected


@pytest.mark.parametrize(
    ("given", "expected"), [(0, "0"), (7, "7"), (1.0, "1"), (2.5, "2.5"), ("x", "x"), (None, None), ("", None)]
)
def test_ids_are_texts(given, expected):
    (row,) = read_rows([{"prompt": "p", "prompt_id": given}])
    assert row.prompt_id == expected


def test_missing_columns_are_none():
    (row,) = read_rows([{"prompt": "p"}])
    assert (row.references, row.prompt_id, row.key) == (None, None, "p")


PICTURE = Picture.new("RGB", (2, 2))
BAD = [
    ("references", [{"answer": "x"}], None),
    ("references", [[["a"]], [["b"]]], None),
    ("references", [None, PICTURE], Features({"prompt": Value("string"), "references": Image()})),
    ("references", ["fine", {"x": 1}], Features({"prompt": Value("string"), "references": Json()})),
    ("references", [datetime(2024, 1, 1)], None),
    ("prompt_id", [["a"]], None),
    ("prompt_id", [{"a": 1}], None),
]


@pytest.mark.parametrize(("name", "values", "features"), BAD)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_read_is_refused_with_column_and_row(policy, tmp_path, name, values, features, streaming):
    data = Dataset.from_dict({"prompt": ["What?"] * len(values), name: values}, features=features)
    at = next(i for i, value in enumerate(values) if not isinstance(value, (str, type(None))))
    if not streaming:
        with pytest.raises(CalibrantError, match=rf"^the column '{name}' of the data set holds .* in row {at}; give"):
            check_data({"train": data})
        return
    with pytest.raises(CalibrantError, match=rf"^the column '{name}' of the data set holds .* of the batch; give"):
        read_rows(list(data.to_iterable_dataset()))


def never(self, *_args, **_keywords):
    pytest.fail("something was sampled")


@pytest.mark.parametrize("kind", ["rows", "stream", "transform", "eval"])
def test_it_is_refused_before_anything_is_sampled(policy, questions, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(CalibratedGRPOTrainer, "_generate_single_turn", never)
    bad = questions.remove_columns("references").add_column("references", [{"x": 1}] * len(questions))
    data = bad.to_iterable_dataset() if kind == "stream" else bad
    if kind == "transform":
        data = questions.with_transform(lambda batch: {**batch, "references": [{"x": 1}] * len(batch["prompt"])})
    args, other = arguments(tmp_path, method="grpo"), {"eval_dataset": {"one": data}} if kind == "eval" else {}
    with pytest.raises(CalibrantError, match=r"^the column 'references' of the data set holds \{'x': 1\} in row 0"):
        train(policy, questions if kind == "eval" else data, args, vowels, **other)


def test_readable_columns_are_not_read_at_the_start(questions, monkeypatch):
    monkeypatch.setattr(Dataset, "select_columns", never)
    check_data(questions)


COLUMNS = {
    "texts": (lambda i: f"answer {i}", lambda i: f"answer {i}"),
    "numbers": (lambda i: i, lambda i: i),
    "floats": (lambda i: i + 0.5, lambda i: [i + 0.5, 1.0]),
    "none": (lambda i: None, lambda i: None),
}


@pytest.mark.parametrize("kind", list(COLUMNS))
def test_columns_of_any_type_are_trained_on_judged_and_written(policy, questions, tmp_path, kind):
    name, right = COLUMNS[kind]
    rows = [{"prompt": x["prompt"], "prompt_id": name(i), "references": right(i)} for i, x in enumerate(questions)]
    seen = []

    def is_correct(answer, references):
        seen.append(references)
        return len(answer) % 2 == 0

    method = "rd_only" if kind == "none" else "egpo"
    args = arguments(tmp_path, method=method, max_steps=1, shuffle_dataset=False)
    train(policy, Dataset.from_list(rows), args, vowels, is_correct=is_correct)
    written = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    expected = {
        "texts": [["answer 0"], ["answer 1"]], "numbers": [["0"], ["1"]], "floats": [["0.5", "1"], ["1.5", "1"]],
        "none": [],
    }[kind]  # fmt: skip
    assert seen == [gold for gold in expected for _ in range(4)]
    assert written.prompt_id.nunique() == 2
    if kind == "numbers":
        assert written.prompt_id.tolist() == ["0"] * 4 + ["1"] * 4
    assert (written.correct.notna() == (kind != "none")).all()
    if kind != "none":
        assert written.correct.tolist() == [len(answer) % 2 == 0 for answer in written.answer]


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("Arrow"), MemoryError("x")])
def test_a_file_that_cannot_be_written_does_not_end_training(policy, questions, tmp_path, monkeypatch, error):
    def fail(*_args, **_keywords):
        raise error

    monkeypatch.setattr("calibrant.trl.rollout_files.write_rollouts", fail)
    with pytest.warns(UserWarning, match=rf"step-000001.parquet' was not written \({type(error).__name__}") as warned:
        trainer = train(policy, questions, arguments(tmp_path, method="grpo"), vowels)
    assert trainer.state.global_step == 2
    assert sum("was not written" in str(w.message) for w in warned) == 1


def test_a_folder_in_the_way_does_not_end_training(policy, questions, tmp_path):
    (tmp_path / "_rollouts").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="was not written"):
        assert train(policy, questions, arguments(tmp_path, method="grpo", max_steps=1), vowels).state.global_step == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_ends_it(policy, questions, tmp_path, monkeypatch, number):
    def fail(*_args, **_keywords):
        raise OSError(number, "full")

    monkeypatch.setattr("calibrant.trl.rollout_files.write_rollouts", fail)
    with pytest.raises(OSError, match="full"):
        train(policy, questions, arguments(tmp_path, method="grpo", max_steps=1), vowels)


def test_prompts_of_a_group_that_differ_are_written_beside_that_of_the_data():
    columns = {"prompt": ["p"] * 4, "observed_prompt": ["p1", "p2", "p3", "p3"]}
    assert settle_prompts(columns, 2) == {"prompt": ["p", "p", "p3", "p3"], "observed_prompt": ["p1", "p2", "p3", "p3"]}
    assert settle_prompts({"prompt": ["p"] * 2, "observed_prompt": ["q"] * 2}, 2) == {"prompt": ["q"] * 2}
