"""The table of a comparison: structure, JSON, which cell is compared with which."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from calibrant.errors import CalibrantError
from calibrant.statistics.comparison import compare, reference_of
from calibrant.statistics.comparison_table import ComparisonTable
from calibrant.statistics.corrections import holm
from calibrant.statistics.measurements import CellMeasurements, Measurements, Scores

PROMPTS = tuple(f"q{i}" for i in range(32))


def cell(name, seeds=(0, 1, 2), left_out=None, cost=None, **options):
    return CellMeasurements(name, {"method": name, **options}, tuple(seeds), left_out or {}, cost or {}, {})


def values(cells, gains, prompts=32, seed=0):
    """Cell -> seed -> values per prompt."""
    draw = np.random.default_rng(seed)
    level = draw.beta(0.5, 1.0, prompts)
    return {
        c.name: {s: tuple(level + gain + draw.normal(0, 0.1, prompts) + draw.normal(0, 0.01)) for s in c.seeds}
        for c, gain in zip(cells, gains, strict=True)
    }


def measured(cells, gains, varied=None, **changed):
    scores = Scores("places", "sampled/f1", PROMPTS, values(cells, gains), {"demo": (0.25,) * 31 + (0.5,)})
    return Measurements(**{"baseline": cells[0].name, "settings": "shared", "pair_seeds": True, "varied": varied or {},
                           "cells": cells, "scores": (scores,), **changed})  # fmt: skip


CELLS = (cell("grpo", left_out={3: "out of memory"}), cell("gcpo_bot"), cell("gcpo_cd"))


def test_both_structures_survive_json():
    measurements = measured(CELLS, (0, 0.05, 0.1), {"alpha": (0.0, 0.3)})
    table = compare(measurements)
    stored = json.loads(json.dumps([measurements.to_json(), table.to_json()], allow_nan=False))
    assert Measurements.from_json(stored[0]) == measurements
    assert ComparisonTable.from_json(stored[1]) == table


@pytest.mark.parametrize(
    ("metric", "levels", "before", "collapsed"),
    [
        ("sampled/f1", (0.4, 0.1, 0.41), 0.3, (1,)),  # below half of the others
        ("sampled/f1", (0.1, 0.1, 0.1), 0.3, (0, 1, 2)),  # below half of before training
        ("sampled/f1", (0.1, 0.1, 0.1), None, ()),
        ("sampled/rewards/penalty", (-1.0, -2.0, -3.0), -2.0, ()),
        ("calibration/brier", (0.4, 0.1, 0.41), 0.3, ()),  # lower is better
    ],
)
def test_runs_that_collapsed(metric, levels, before, collapsed):
    one = cell("grpo", seeds=(0, 1, 2))
    values = {"grpo": {seed: (level,) for seed, level in enumerate(levels)}}
    start = {} if before is None else {"demo": (before,)}
    scores = Scores("places", metric, ("a",), values, start)
    (table,) = compare(measured((one,), (0,), scores=(scores,))).tables
    assert table.rows[0].collapsed == collapsed


def test_a_baseline_that_is_no_cell_is_refused():
    with pytest.raises(CalibrantError, match="'rloo' is not among the cells; choose one of grpo, gcpo_bot, gcpo_cd"):
        compare(measured(CELLS, (0, 0, 0), baseline="rloo"))


def test_a_row_is_what_it_says():
    table = compare(measured(CELLS, (0, 0.05, 0.1))).tables[0]
    data = values(CELLS, (0, 0.05, 0.1))
    means = {name: [np.mean(row) for row in by.values()] for name, by in data.items()}
    assert [row.cell for row in table.rows] == ["grpo", "gcpo_bot", "gcpo_cd"] and table.prompts == 32
    for row in table.rows:
        assert np.allclose(list(row.by_seed.values()), means[row.cell])
        assert np.isclose(row.mean, np.mean(means[row.cell]))
        assert np.isclose(row.deviation, np.std(means[row.cell], ddof=1)) and np.isclose(row.before, 8.25 / 32)
    first, second, third = table.rows
    assert first.gain is None and first.stability is None
    assert np.isclose(third.gain.value, third.mean - first.mean)
    assert np.isclose(third.gain.percent, 100 * third.gain.value / first.mean)
    assert third.gain.low < third.gain.value < third.gain.high and third.gain.over == "seeds and prompts"
    assert sorted([second.gain.p_holm, third.gain.p_holm]) == pytest.approx(holm(sorted([second.gain.p, third.gain.p])))


def test_a_sweep_is_compared_at_equal_values_of_the_varied_options():
    pairs = [(method, rate) for method in ("grpo", "gcpo_bot") for rate in (1e-5, 1e-4)]
    cells = (*(cell(f"{m} lr={rate}", method=m, learning_rate=rate) for m, rate in pairs), cell("rd_only"))
    measurements = measured(cells, (0,) * 5, {"learning_rate": (1e-5, 1e-4)})
    assert [reference_of(c, measurements) for c in cells] == [
        "grpo lr=1e-05", "grpo lr=1e-05", "grpo lr=1e-05", "grpo lr=0.0001", "grpo lr=1e-05",
    ]  # fmt: skip
    against = [row.gain and row.gain.against for row in compare(measurements).tables[0].rows]
    assert against == [None, "grpo lr=1e-05", "grpo lr=1e-05", "grpo lr=0.0001", "grpo lr=1e-05"]


def test_runs_of_equal_seeds_are_pairs():
    luck = {seed: 0.1 * seed for seed in range(3)}
    data = values(CELLS, (0, 0.05, 0.1))
    data = {name: {s: tuple(v + luck[s] for v in row) for s, row in by.items()} for name, by in data.items()}
    del data["gcpo_cd"][1]
    scores = (Scores("places", "sampled/f1", PROMPTS, data, {}),)
    _, same, other = (row.gain for row in compare(measured(CELLS, (0, 0, 0), scores=scores)).tables[0].rows)
    apart = compare(measured(CELLS, (0, 0, 0), scores=scores, pair_seeds=False)).tables[0].rows[1].gain
    assert (same.pairs, other.pairs, apart.pairs) == ((0, 1, 2), (0, 2), ())
    assert same.value == apart.value and same.high - same.low < (apart.high - apart.low) / 4
    left = {name: {s: row for s, row in by.items() if s != 1} for name, by in data.items()}
    both = Scores("places", "sampled/f1", PROMPTS, left, {})
    assert other == replace(
        compare(measured(CELLS, (0, 0, 0), scores=(both,))).tables[0].rows[2].gain, p_holm=other.p_holm
    )


def test_cells_without_a_seed_in_common_are_not_pairs():
    cells = (cell("grpo", seeds=(0, 1)), cell("gcpo_bot", seeds=(2, 3, 4)))
    gain = compare(measured(cells, (0, 0.3))).tables[0].rows[1].gain
    assert gain.pairs == () and gain.over == "seeds and prompts" and gain.low is not None


def test_one_seed_and_a_metric_without_prompts():
    cells = (cell("grpo", seeds=(0,)), cell("gcpo_bot"))
    auc = Scores(
        "places", "calibration/auc", (), {"grpo": {0: (0.7,)}, "gcpo_bot": dict.fromkeys(range(3), (0.8,))}, {}
    )
    measurements = measured(cells, (0, 0.3))
    tables = compare(replace(measurements, scores=(*measurements.scores, auc))).tables
    gain, alone = tables[0].rows[1].gain, tables[1].rows[1].gain
    assert gain.over == "prompts" and gain.seeds_needed is None and gain.p < 0.05 and gain.p_holm == gain.p
    assert tables[0].rows[0].deviation is None and tables[0].rows[1].stability.p is None
    assert alone.over == "" and alone.p is alone.low is alone.detectable is None and tables[1].comparisons == 0
    assert tables[1].prompts == 0 and alone.value == pytest.approx(0.1)


def test_values_that_never_differ_give_no_interval():
    table = {name: dict.fromkeys(range(3), (value,) * 32) for name, value in (("grpo", 0.1), ("gcpo_bot", 0.3))}
    scores = Scores("places", "sampled/em", PROMPTS, table, {})
    gain = compare(measured(CELLS[:2], (0, 0), scores=(scores,))).tables[0].rows[1].gain
    assert gain.over == "" and gain.p is None and gain.value == pytest.approx(0.2)


def test_missing_values_leave_all_rows_and_missing_metrics_are_named():
    data = values(CELLS, (0, 0, 0))
    data["gcpo_bot"][1] = (math.nan, *data["gcpo_bot"][1][1:])
    del data["gcpo_cd"]
    table = compare(
        measured(CELLS, (0, 0, 0), scores=(Scores("t", "m", PROMPTS, data, {"a": (0.5,), "b": ()}),))
    ).tables[0]
    assert (table.prompts, table.dropped, table.missing) == (31, 1, ("gcpo_cd",))
    assert table.rows[0].mean == pytest.approx(np.mean([row[1:] for row in data["grpo"].values()]))
    assert table.rows[0].before is None
    data["grpo"] = {0: (math.nan,) * 32}
    other = compare(measured(CELLS, (0, 0, 0), scores=(Scores("t", "m", PROMPTS, data, {}),))).tables[0]
    assert [row.gain for row in other.rows] == [None] and other.missing == ("grpo", "gcpo_cd")
    data["grpo"] = {0: (0.5, *[math.nan] * 31)}  # no prompt in common
    nothing = compare(measured(CELLS, (0, 0, 0), scores=(Scores("t", "m", PROMPTS, data, {}),))).tables[0]
    assert nothing.rows == () and nothing.missing == ("grpo", "gcpo_bot", "gcpo_cd")


def test_a_seed_without_any_value_is_left_out_of_its_row_alone():
    auc = Scores(
        "t", "auc", (), {"grpo": {0: (0.7,), 1: (math.nan,), 2: (0.8,)}, "gcpo_bot": {2: (0.9,), 0: (0.7,)}}, {}
    )
    cost = {"updates": {0: 30.0, 1: math.nan}, "seconds": {0: math.nan}}
    cells = (cell("grpo", cost=cost), cell("gcpo_bot"))
    table = compare(measured(cells, (0, 0), scores=(auc,)))
    assert [row.by_seed for row in table.tables[0].rows] == [{0: 0.7, 2: 0.8}, {0: 0.7, 2: 0.9}]
    assert {name: c.mean for name, c in table.cells[0].cost.items()} == {"updates": 30.0}
    json.dumps(table.to_json(), allow_nan=False)


def test_other_prompts_are_refused():
    data = values(CELLS, (0, 0, 0))
    data["gcpo_bot"][2] = data["gcpo_bot"][2][:5]
    with pytest.raises(CalibrantError, match="cell 'gcpo_bot' with seed 2 has 5 values for 32 prompts; evaluate all"):
        compare(measured(CELLS, (0, 0, 0), scores=(Scores("t", "m", PROMPTS, data, {}),)))


def test_before_is_that_of_the_cells_model():
    cells = (cell("a", model="A"), cell("b", model="B"), cell("c", model="C"))
    scores = Scores("t", "m", PROMPTS, values(cells, (0, 0, 0)), {"A": (0.1,) * 32, "B": (0.2,) * 32})
    rows = compare(measured(cells, (0, 0, 0), scores=(scores,))).tables[0].rows
    assert [row.before for row in rows] == [pytest.approx(0.1), pytest.approx(0.2), None]


def test_other_costs_are_marked():
    cost = {"updates": {0: 30.0, 1: 30.0}, "seconds": {0: 100.0, 1: 104.0}, "seconds/reward": {0: 1.0}}
    twice = {"updates": {0: 60.0, 1: 60.0}, "seconds": {0: 105.0, 1: 115.0}, "seconds/reward": {0: 9.0}}
    table = compare(measured((cell("grpo", cost=cost), cell("r2vpo", cost=twice)), (0, 0)))
    assert table.cells[0].other_cost == () and table.cells[1].other_cost == ("updates",)
    assert table.cells[1].cost["seconds"].ratio == pytest.approx(110 / 102)
    slower = {"seconds": {0: 130.0}}
    assert compare(measured((cell("grpo", cost=cost), cell("x", cost=slower)), (0, 0))).cells[1].other_cost == (
        "seconds",
    )
