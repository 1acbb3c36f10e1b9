"""Rollout files: what is written comes back, and what cannot be read is refused with file, row and column."""

import gzip
import json
import pickle

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.rollouts import COLUMNS, FURTHER_NUMBERS, read_rollouts, write_rollouts

ROWS = [
    {
        "prompt_id": "a",
        "rollout": 0,
        "completion": "x\u2028</script>",
        "reward": 1.0,
        "references": ["x"],
        "score": 0.5,
    },
    {"prompt_id": "a", "rollout": 1, "completion": "", "reward": float("nan"), "references": [], "score": 0.25},
]


@pytest.mark.parametrize("name", ["r.parquet", "r.jsonl"])
def test_rollouts_come_back(tmp_path, name):
    frame = read_rollouts(write_rollouts(tmp_path / name, ROWS))
    assert frame.completion.tolist() == ["x\u2028</script>", ""]
    assert frame.reward[0] == 1.0
    assert pd.isna(frame.reward[1])
    assert frame.score.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}\n", "lacks the column prompt_id, completion, reward"),
        ("not json\n", "line 1, is damaged"),
        ("not json", "line 1, is damaged"),
        ("[]", "line 1, is damaged"),
        ('{"prompt_id": "a"}\n{bro\n', "line 2, is damaged"),
        ('{"prompt_id": "a"}\n[1]\n', "line 2, is damaged"),
        ("", "holds no rollouts; give"),
        ("\n \n", "holds no rollouts; give"),
        ("{bro", "holds no rollouts; give"),
        ("[" * 100_000 + "\n", "line 1"),
        (None, "no rollout file"),
    ],
)
def test_what_is_no_rollout_file_is_refused(tmp_path, content, said):
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CalibrantError, match=said):
        read_rollouts(path)


def test_a_cut_parquet_file_is_refused(tmp_path):
    path = write_rollouts(tmp_path / "r.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CalibrantError, match="is a damaged Parquet file"):
        read_rollouts(path)


def test_json_lines_of_rollouts_are_json(tmp_path):
    path = write_rollouts(tmp_path / "r.jsonl", ROWS[:1])
    assert json.loads(path.read_text())["prompt_id"] == "a"


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("reward", "high", "'high' in the column 'reward', row 2, where a number belongs"),
        ("reward", [1], "a number"),
        ("reward", 10**400, "a number"),
        ("completion", 3, "a text"),
        ("completion", {"k": 1}, "a text"),
        ("answer", ["a"], "a text"),
        ("prompt_id", ["a"], "a text or a number"),
        ("prompt_id", None, "no prompt_id in row 2"),
        ("references", "x", "a list of texts"),
        ("references", [["x"]], "a list of texts"),
        ("num_tokens", 1.5, "a whole number"),
        ("num_tokens", 2**31, "a whole number"),
        ("cluster", 1e300, "a whole number"),
        ("correct", "yes", "true or false"),
        ("correct", 0.5, "true or false"),
        ("step", {"k": 1}, "a whole number"),
    ],
)
def test_a_value_that_is_not_what_its_column_holds_is_refused(tmp_path, column, value, said):
    path = tmp_path / "r.jsonl"
    good = {"prompt_id": "a", "completion": "x", "reward": 1.0}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, good | {column: value})))
    with pytest.raises(CalibrantError, match=said):
        read_rollouts(path)


def test_numbers_as_texts_and_numbers_as_ids_are_read_and_written_again(tmp_path):
    path = tmp_path / "r.jsonl"
    row = {"prompt_id": 7, "completion": None, "reward": "0.5", "correct": 1, "num_tokens": 3, "references": None}
    path.write_text("\ufeff" + json.dumps(row) + "\n\n" + json.dumps(row | {"reward": 10**30}))
    frame = read_rollouts(path)
    again = read_rollouts(write_rollouts(tmp_path / "r.parquet", frame.to_dict("records")))
    assert frame["prompt_id"].tolist() == again["prompt_id"].tolist() == ["7", "7"]
    assert frame["completion"].tolist() == ["", ""]
    assert again["reward"].tolist() == [0.5, 1e30]
    assert again["correct"].tolist() == [True, True]


def test_the_last_line_counts_without_an_end_and_not_when_it_is_cut_short(tmp_path):
    path = tmp_path / "r.jsonl"
    line = json.dumps({"prompt_id": "a", "completion": "x", "reward": 1.0})
    path.write_text(f"{line}\n{line}")
    assert len(read_rollouts(path)) == 2
    path.write_text(f"{line}\n{line[:-5]}")
    assert len(read_rollouts(path)) == 1


def test_a_file_without_rollouts_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(CalibrantError, match="holds no rollouts"):
        read_rollouts(write_rollouts(tmp_path / "r.parquet", []))
    pd.DataFrame(ROWS * 50).to_parquet(tmp_path / "d.parquet")
    content = bytearray((tmp_path / "d.parquet").read_bytes())
    content[20:120] = b"\xff" * 100
    (tmp_path / "d.parquet").write_bytes(content)
    with pytest.raises(CalibrantError, match="is a damaged Parquet file"):
        read_rollouts(tmp_path / "d.parquet")


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD = {"prompt_id": "a", "completion": "x", "reward": 1.0}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (lines(GOOD | {"completion": "half \ud83d"}), r"column 'completion', row 2; correct"),
        (lines(GOOD | {"references": ["a", "\udc00"]}), r"column 'references', row 2; correct"),
        (lines(GOOD | {"mine": {"k": ["\ud800"]}}), r"column 'mine', row 2; correct"),
        (lines(GOOD | {"\ud800": 1}), r"column '\\ud800', row 2; correct"),
        (lines(GOOD).replace(b'"x"', b'"\xed\xa0\x80"'), r"line 2, is damaged.* is not UTF-8"),
        (lines(GOOD).replace(b'"x"', b'"\xff"'), r"line 2, is damaged.* is not UTF-8"),
    ],
)
def test_text_that_is_no_unicode_is_refused_with_its_row(tmp_path, second, said):
    path = tmp_path / "r.jsonl"
    path.write_bytes(lines(GOOD) + second + lines(GOOD))
    with pytest.raises(CalibrantError, match=r"r\.jsonl'.*" + said):
        read_rollouts(path)


def test_a_pair_of_surrogates_is_a_character(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(lines(GOOD | {"completion": "\U0001f600"}))
    assert b"\\ud83d" in path.read_bytes()
    assert read_rollouts(path).completion[0] == "\U0001f600"


def test_bytes_that_are_no_text_in_parquet_are_refused_with_their_row(tmp_path):
    ends = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 1, 3)))
    texts = pa.StringArray.from_buffers(2, ends, pa.py_buffer(b"a\xff\xfe"))
    pq.write_table(
        pa.table({"prompt_id": ["a", "a"], "completion": texts, "reward": [1.0, 0.0]}), tmp_path / "r.parquet"
    )
    with pytest.raises(CalibrantError, match=r"r\.parquet'.* column 'completion', row 2; correct"):
        read_rollouts(tmp_path / "r.parquet")


def test_an_index_is_a_column_and_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "r.parquet"
    pd.DataFrame([GOOD, GOOD]).set_index("prompt_id").to_parquet(path)
    assert read_rollouts(path)["prompt_id"].tolist() == ["a", "a"]
    twice = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["prompt_id", "completion", "completion"])
    pq.write_table(twice, path)
    with pytest.raises(CalibrantError, match=r"r\.parquet' has several columns 'completion'"):
        read_rollouts(path)


def test_ids_of_whole_numbers_stay_whole_beside_texts_and_fractions(tmp_path):
    rows = [GOOD | {"prompt_id": key} for key in (2**60 + 1, 7, 0.5, "b")]
    (tmp_path / "r.jsonl").write_bytes(lines(*rows))
    assert read_rollouts(tmp_path / "r.jsonl")["prompt_id"].tolist() == [str(2**60 + 1), "7", "0.5", "b"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.csv", b"prompt_id,completion\n", "neither Parquet nor JSON Lines.*read_csv"),
        ("r.json", b"[{}]", "neither Parquet nor JSON Lines.*one object per line"),
        ("r.jsonl.gz", gzip.compress(lines(GOOD), mtime=0), "neither Parquet nor JSON Lines.*unpack it"),
        ("r.pkl", pickle.dumps([GOOD]), "neither Parquet nor JSON Lines.*not opened"),
        ("r.parquet", b"hello", "neither Parquet nor JSON Lines.*convert it"),
        ("r.jsonl", gzip.compress(lines(GOOD), mtime=0), "line 1, is damaged"),
        ("r.parquet", b"", "holds no rollouts"),
        ("r.parquet", b"PAR1", "is a damaged Parquet file"),
    ],
)
def test_a_format_that_is_not_read_is_named_and_what_to_do(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrantError, match=said):
        read_rollouts(tmp_path / name)


def test_a_folder_is_refused_with_a_file_in_it(tmp_path):
    with pytest.raises(CalibrantError, match=r"is a folder; name one rollout file, e\.g\. '.*NAME\.parquet'"):
        read_rollouts(tmp_path)
    write_rollouts(tmp_path / "rollouts" / "step-000001.parquet", [GOOD])
    with pytest.raises(CalibrantError, match=r"e\.g\. '.*rollouts/step-000001\.parquet'"):
        read_rollouts(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([".jsonl", ".parquet", ".json", ""]), st.binary(max_size=200))
@example(".jsonl", b'{"prompt_id": 1e999, "completion": null, "reward": NaN, "cluster": Infinity}')
@example(".jsonl", b'{"prompt_id": ' + b"9" * 5000 + b', "completion": ""}\n')
def test_any_bytes_give_rows_or_one_sentence_with_the_file(tmp_path, ending, content):
    rows_or_sentence(tmp_path / f"r{ending}", content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(st.sampled_from([*COLUMNS, *FURTHER_NUMBERS, "mine"]), JSON), max_size=3), st.booleans()
)
def test_any_rows_give_rows_or_one_sentence_with_the_file(tmp_path, more, surrogate):
    text = lines(*(GOOD | row for row in more)) + (lines(GOOD | {"mine": "\ud800"}) if surrogate else b"")
    rows_or_sentence(tmp_path / "r.jsonl", text)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8), st.integers(0, 10_000))
def test_a_damaged_parquet_file_gives_rows_or_one_sentence_with_the_file(tmp_path, at, damage, cut):
    content = bytearray(write_rollouts(tmp_path / "whole.parquet", ROWS).read_bytes())
    at %= len(content)
    content[at : at + len(damage)] = damage
    rows_or_sentence(tmp_path / "r.parquet", bytes(content[: len(content) - (cut % 40 if cut % 2 else 0)]))


def rows_or_sentence(path, content):
    path.write_bytes(content)
    try:
        assert len(read_rollouts(path)) > 0
    except CalibrantError as error:
        assert f"'{path}'" in str(error)
        assert "\n" not in str(error)
