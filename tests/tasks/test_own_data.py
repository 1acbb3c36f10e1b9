"""Data of one's own: files, folders, columns and splits."""

import csv
import gzip
import json
from dataclasses import replace

import pandas as pd
import pytest
from builders_tasks import lines

from calibrant.errors import CalibrantError
from calibrant.options import DataOptions
from calibrant.tasks import chosen_task

ROWS = [{"question": f"What is {i} + {i}?", "context": f"It is {2 * i}.", "answers": [str(2 * i)]} for i in range(20)]


def load(data, split="test", task="reading", **options):
    """The rows of a split by their ids."""
    chosen = chosen_task(DataOptions(task=task, data=str(data), **options))
    return {row["prompt_id"]: row for row in chosen.load(split, None, 0)}


def everything(data, task="reading", **options):
    return load(data, "test", task, test_share=1.0, **options)


def table(path, header, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def refusal(data, task="reading", **options):
    with pytest.raises(CalibrantError) as refused:
        everything(data, task, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Formats

WRITERS = {
    "x.jsonl": lambda path, rows: lines(path, rows),
    "x.jsonl.gz": lambda path, rows: lines(path, rows),
    "x.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "x.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
    "x.parquet": lambda path, rows: pd.DataFrame(rows).to_parquet(path),
    "x.csv": lambda path, rows: table(
        path, list(rows[0]), *[[json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in rows]
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    rows = everything(tmp_path / name)
    assert len(rows) == 20
    row = rows["x-4"]
    assert row["references"] == ["6"] and row["context"] == "It is 6."
    assert row["prompt"].endswith("It is 6.\n\nQuestion: What is 3 + 3?\nAnswer:")
    assert row["columns"]["question"] == "What is 3 + 3?"


# Splits


def test_one_file_is_divided_and_equal_contexts_stay_together(tmp_path):
    rows = [{"question": f"Q{i}?", "context": f"Story {i % 10}. " * 3, "answers": "a"} for i in range(100)]
    lines(tmp_path / "all.jsonl", rows)
    train, test = load(tmp_path / "all.jsonl", "train"), load(tmp_path / "all.jsonl")
    assert len(test) == 10 and len(train) == 90
    assert not {r["context"] for r in train.values()} & {r["context"] for r in test.values()}
    lines(tmp_path / "other.jsonl", rows[::-1])
    same = load(tmp_path / "other.jsonl")
    assert {r["prompt"] for r in same.values()} == {r["prompt"] for r in test.values()}  # whatever their order
    assert len(load(tmp_path / "all.jsonl", test_share=0.35)) == 40


def test_repeated_questions_stay_on_one_side(tmp_path):
    rows = [{"question": f"  What is {i % 7} + 1?", "answers": "1"} for i in range(70)]
    lines(tmp_path / "all.jsonl", rows)
    train, test = (load(tmp_path / "all.jsonl", split, "maths") for split in ("train", "test"))
    assert len(train) == 60 and len(test) == 10
    assert not {r["prompt"] for r in train.values()} & {r["prompt"] for r in test.values()}


def test_rows_with_one_text_cannot_be_divided(tmp_path):
    lines(tmp_path / "a.jsonl", [{"question": f"{i}?", "context": "same", "answers": "1"} for i in range(5)])
    with pytest.raises(CalibrantError, match=r"all rows of .* have the same text"):
        load(tmp_path / "a.jsonl")


def test_the_name_of_a_file_is_its_split(tmp_path):
    lines(tmp_path / "quiz_dev.jsonl", ROWS)
    assert len(load(tmp_path / "quiz_dev.jsonl", "validation")) == 20
    with pytest.raises(CalibrantError, match="has no split for training, only validation"):
        load(tmp_path / "quiz_dev.jsonl", "train")
    with pytest.raises(CalibrantError, match="has the splits validation; leave out --test-share"):
        load(tmp_path / "quiz_dev.jsonl", test_share=0.5)


def test_a_folder_in_the_layout_of_the_hub(tmp_path):
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for i, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        pd.DataFrame(ROWS[i * 5 : i * 5 + 5]).to_parquet(folder / "data" / f"{name}.parquet")
    (folder / "README.md").write_text("# Sums\n")
    task = chosen_task(DataOptions(task="reading", data=str(folder)))
    assert task.splits == ("train", "test")
    assert len(load(folder, "train")) == 10 and min(load(folder)) == "test-00000-of-00001-1"
    with pytest.raises(CalibrantError, match=r"has the splits train, test; leave out --test-share"):
        load(folder, test_share=0.5)


def test_configurations_of_a_folder(tmp_path):
    lines(tmp_path / "sub" / "a.jsonl", ROWS[:8])
    lines(tmp_path / "sub" / "b.jsonl", ROWS[8:])
    parts = "".join(f"  - split: {s}\n    path: sub/{f}.jsonl\n" for s, f in (("train", "a"), ("test", "b")))
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: one\n  data_files:\n{parts}- config_name: two\n  data_files: sub/a.jsonl\n---\n"
    )
    assert len(load(f"{tmp_path}:one", "train")) == 8 and len(load(f"{tmp_path}:one")) == 12
    assert "one" in refusal(tmp_path) and "give --data a file" in refusal(tmp_path)
    assert "cannot be read as a data set" in refusal(f"{tmp_path}:three")


def test_the_order_depends_on_the_seed_alone(tmp_path):
    lines(tmp_path / "train.jsonl", ROWS)
    lines(tmp_path / "test.jsonl", ROWS[:3])
    task = chosen_task(DataOptions(task="reading", data=str(tmp_path)))
    assert task.load("train", 5, 1) == task.load("train", None, 1)[:5] != task.load("train", 5, 2)


def test_what_is_no_data(tmp_path):
    assert "does not exist" in refusal(tmp_path / "no.csv")
    assert "is no data file" in refusal(table(tmp_path / "notes.txt", ["a"]))
    (tmp_path / "empty").mkdir()
    assert "cannot be read as a data set" in refusal(tmp_path / "empty")
    assert "is not in the hub's cache, and the hub cannot be reached" in refusal("nobody/no-such-set")
    lines(tmp_path / "none.jsonl", [])
    assert "has no column 'question'" in refusal(tmp_path / "none.jsonl")


def test_data_go_with_generic_tasks_alone(tmp_path):
    lines(tmp_path / "a.jsonl", ROWS)
    assert "not with 'gsm8k', whose official files go with --data-dir" in refusal(tmp_path / "a.jsonl", "gsm8k")
    for options, said in (
        ({"data": "x.csv", "data_dir": "y"}, "not both"),
        ({"columns": {"question": "x"}}, "--columns goes with your own data"),
        ({"test_share": 0.5}, "--test-share goes with your own data"),
    ):
        with pytest.raises(CalibrantError, match=said):
            chosen_task(DataOptions(task="reading", **options))
    with pytest.raises(CalibrantError, match="the task 'maths' needs data: give --data"):
        chosen_task(DataOptions(task="maths")).load("test", 1, 0)


# Levels


@pytest.mark.parametrize(("levels", "kept"), [("3-5", 3), ("1", 1), ("1,4-5", 3)])
def test_levels(tmp_path, levels, kept):
    rows = [{"problem": f"P{i}?", "answer": str(i), "level": f"Level {i}"} for i in range(1, 6)]
    for split in ("train", "test"):
        lines(tmp_path / f"{split}.jsonl", [row | {"level": i + 1} for i, row in enumerate(rows)])
    own = DataOptions(task="maths", data=str(tmp_path), levels=levels)
    for options, folder in ((own, None), (DataOptions(task="math500", levels=levels), tmp_path)):
        for training, tested in ((False, kept), (True, 5)):
            task = chosen_task(options, training=training)
            assert len(task.load("train", None, 0, data_dir=folder)) == kept
            assert len(task.load("test", None, 0, data_dir=folder)) == tested


def test_levels_do_not_move_rows_between_training_and_test(tmp_path):
    rows = [{"problem": f"P{i}?", "answer": str(i), "level": i % 2} for i in range(40)]
    options = DataOptions(task="maths", data=str(lines(tmp_path / "maths.jsonl", rows) / "maths.jsonl"))
    every = chosen_task(options).load("test", None, 0)
    for training, levels in ((True, (0, 1)), (False, (1,))):
        task = chosen_task(replace(options, levels="1"), training=training)
        expected = [row["prompt_id"] for row in every if row["columns"]["level"] in levels]
        assert sorted(row["prompt_id"] for row in task.load("test", None, 0)) == sorted(expected)
        assert {row["columns"]["level"] for row in task.load("train", None, 0)} == {1}
    with pytest.raises(CalibrantError, match="split test: no row is of a level of --levels"):
        chosen_task(replace(options, levels="7")).load("test", None, 0)


def test_levels_that_are_none(tmp_path):
    lines(tmp_path / "test.jsonl", [{"problem": "P?", "answer": "1", "level": 1}])
    for levels in ("x", "5-3", "-1", "3-"):
        with pytest.raises(CalibrantError, match="are no levels; give e"):
            chosen_task(DataOptions(task="math500", levels=levels))
    with pytest.raises(CalibrantError, match="goes with math500"):
        chosen_task(DataOptions(task="gsm8k", levels="3"))
    with pytest.raises(CalibrantError, match="no question is left; expected a level of --levels"):
        chosen_task(DataOptions(task="math500", levels="4")).load("test", None, 0, data_dir=tmp_path)
    assert "has no column 'level' for --levels" in refusal(
        lines(tmp_path / "a.jsonl", ROWS) / "a.jsonl", "maths", levels="3"
    )
