"""Data folders and the hub, for every task."""

import gzip

import datasets
import pytest
from builders_tasks import EMBEDDED, MATH, NARRATIVE_RECORD, lines, loaded

from calibrant import hub
from calibrant.errors import CalibrantError
from calibrant.tasks import TASKS, training_task
from calibrant.tasks.files import records
from calibrant.tasks.sources import read_items

FROM_FILES = [name for name, task in TASKS.items() if task.source]


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
