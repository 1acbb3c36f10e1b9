"""Rollouts of any number: the same columns whole and value by value, units of whole groups, partitions on the disk."""

import json
import random

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.rollouts import tables
from calibrant.rollouts.columns import TYPES, read_column
from calibrant.rollouts.tables import blocks_of
from calibrant.rollouts.units import FILE, ROW, GroupsLieApart, check_prompts, in_order, joined, partitioned


def table(ids, **more):
    rows = {"prompt_id": [str(x) for x in ids], "completion": [f"{i}" for i in range(len(ids))], **more}
    places = {FILE: pa.array([0] * len(ids), pa.int32()), ROW: list(range(1, len(ids) + 1))}
    return pa.table({**rows, **places})


def ids(units):
    return [unit["prompt_id"].to_pylist() for unit in units]


def test_units_hold_whole_groups_whatever_the_tables():
    whole = table([group for group in range(10) for _ in range(4)])
    for step in (1, 3, 7, 40):
        units = list(in_order((whole.slice(i, step) for i in range(0, 40, step)), 12))
        assert ids(units) == [
            [str(g) for g in part for _ in range(4)] for part in ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9,))
        ]
        assert joined(units).equals(whole.combine_chunks())


def test_a_large_group_is_a_unit_of_its_own_and_small_ones_count_as_the_largest():
    sizes = {"a": 2, "b": 30, "c": 2, "d": 2, "e": 5, "f": 1}
    whole = table([name for name, size in sizes.items() for _ in range(size)])
    found = [list(dict.fromkeys(part)) for part in ids(in_order([whole], 10))]
    assert found == [["a"], ["b"], ["c", "d"], ["e", "f"]]


def test_few_rollouts_are_one_unit_in_any_order_and_more_are_refused():
    apart = table(["a", "b", "a", "c", "b"])
    assert ids(in_order([apart], 5)) == [["a", "b", "a", "c", "b"]]
    with pytest.raises(GroupsLieApart, match="a"):
        list(in_order([apart], 2))


def test_steps_are_groups_and_null_is_one():
    whole = table(["a"] * 6, step=pa.array([1, 1, None, None, 2, 2], pa.int64()))
    assert [unit["step"].to_pylist() for unit in in_order([whole], 2)] == [[1, 1], [None, None], [2, 2]]


@pytest.mark.parametrize("buffer", [1, 10**9])
def test_partitions_hold_all_rows_with_groups_together(tmp_path, monkeypatch, buffer):
    monkeypatch.setattr("calibrant.rollouts.units.BUFFER", buffer)
    order = [group for group in range(50) for _ in range(4)]
    random.Random(0).shuffle(order)
    whole = table(order, step=[group % 2 for group in order])
    parts = [whole.slice(i, 33) for i in range(0, 200, 33)]
    read = lambda: list(partitioned(lambda: iter(parts), tmp_path / "p", 3 * 64 * 2**20))  # noqa: E731
    first = read()
    units = list(in_order(first, 12))
    assert all(len(unit) == 12 for unit in units[:-1] if len(unit) != 4 and len(unit) != 8)
    assert sorted(row for unit in units for row in unit[ROW].to_pylist()) == list(range(1, 201))
    for unit in units:  # rows of a group keep their order
        for name in set(unit["prompt_id"].to_pylist()):
            rows = [r for r, i in zip(unit[ROW].to_pylist(), unit["prompt_id"].to_pylist(), strict=True) if i == name]
            assert rows == sorted(rows) and len(rows) == 4
    parts.clear()
    assert joined(read()).equals(joined(first))  # from the disk


def test_columns_that_differ_between_blocks_are_joined():
    parts = [pa.table({"prompt_id": ["a"], "x": [1.0]}), pa.table({"prompt_id": ["b"], "x": ["y"], "z": [2.0]})]
    assert joined(parts).to_pylist() == [
        {"prompt_id": "a", "x": "1.0", "z": None},
        {"prompt_id": "b", "x": "y", "z": 2.0},
    ]


def test_one_id_with_two_prompts_is_refused_with_file_and_row():
    unit = table(["a", "b", "a"], prompt=["x", "y", "z"])
    with pytest.raises(CalibrantError, match=r"^'f': rollouts with prompt_id 'a' answer different prompts \(row 3\)"):
        check_prompts(unit, ["'f'"])
    check_prompts(table(["a", "b", "a"], prompt=["x", "y", None]), ["'f'"])


VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3)
LISTS = VALUES | st.lists(st.text(max_size=2) | st.none(), max_size=2)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(TYPES)), st.lists(LISTS, min_size=1, max_size=4))
def test_whole_columns_are_what_values_one_by_one_are(name, values):
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return
    outcomes = []
    for given_values in (array, array.to_pylist()):
        try:
            outcomes.append(read_column(given_values, name, "'f'", 1).to_pylist())
        except (CalibrantError, UnicodeEncodeError) as error:
            outcomes.append(str(error))
    assert repr(outcomes[0]) == repr(outcomes[1])


ROWS = [
    {"a": 1, "b": "2020-01-01", "c": None},
    {"a": 2.5, "b": "x", "c": [1]},
    {"a": None, "b": "2021-01-01", "d": {"k": "v"}},
    {"a": "one", "b": ""},
    {"b": "2020-01-01 10:00:00"},
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(ROWS), min_size=1, max_size=12), st.integers(10, 200), st.booleans())
def test_json_lines_are_the_same_objects_in_blocks_of_any_size(tmp_path, rows, size, blank):
    path = tmp_path / "r.jsonl"
    path.write_text("\ufeff" + ("\n\n" if blank else "\n").join(json.dumps(row) for row in rows))
    found, before = [], tables.BLOCK
    tables.BLOCK = size
    try:
        for block in blocks_of(path):
            assert block.first == len(found) + 1
            lists = [x if isinstance(x, list) else x.to_pylist() for x in block.columns.values()]
            found += [dict(zip(block.columns, row, strict=True)) for row in zip(*lists, strict=True)]
    finally:
        tables.BLOCK = before
    given_values = [{name: value for name, value in row.items() if value is not None} for row in rows]
    assert [{name: value for name, value in row.items() if value is not None} for row in found] == given_values


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n\n{"a": 2}{"a": 3}\n', "line 3, is damaged"),
        (b'{"a": 1}\n{"a": "\\ud800"}\n', "column 'a', row 2"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "line 2, is damaged"),
        (b'{"a": 1}\n[1]\n', "line 2, is damaged"),
    ],
)
def test_damaged_lines_are_named(tmp_path, content, said):
    (tmp_path / "r.jsonl").write_bytes(content)
    with pytest.raises(CalibrantError, match=rf"r\.jsonl'.*{said}"):
        list(blocks_of(tmp_path / "r.jsonl"))
