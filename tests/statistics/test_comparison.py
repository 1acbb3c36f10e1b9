"""The table of a comparison: structure, JSON, which cell is compared with which."""

import json

import numpy as np
import pytest

from calibrant.errors import CalibrantError
from calibrant.statistics.comparison import compare
from calibrant.statistics.comparison_table import ComparisonTable
from calibrant.statistics.measurements import Cell, Measurements, Scores

PROMPTS = tuple(f"q{i}" for i in range(32))


def cell(name, seeds=(0, 1, 2), failed=None, cost=None, **options):
    return Cell(name, {"method": name.split()[0], **options}, tuple(seeds), failed or {}, cost or {}, {})


def values(cells, gains, prompts=len(PROMPTS), seed=0):
    """Cell -> seed -> values per prompt."""
    draw = np.random.default_rng(seed)
    level = draw.beta(0.5, 1.0, prompts)
    return {
        c.name: {s: tuple(level + gain + draw.normal(0, 0.1, prompts) + draw.normal(0, 0.01)) for s in c.seeds}
        for c, gain in zip(cells, gains, strict=True)
    }


def measured(cells, gains, varied=None, **changed):
    scores = Scores("places", "sampled/f1", PROMPTS, values(cells, gains), {"demo": (0.25,) * 31 + (0.5,)})
    return Measurements(**{"baseline": cells[0].name, "settings": "shared", "varied": varied or {}, "cells": cells,
                           "scores": (scores,), **changed})  # fmt: skip


CELLS = (cell("grpo", failed={3: "out of memory"}), cell("gcpo_bot"), cell("gcpo_cd"))


def test_both_structures_survive_json():
    measurements = measured(CELLS, (0, 0.05, 0.1), {"alpha": (0.0, 0.3)})
    table = compare(measurements)
    stored = json.loads(json.dumps([measurements.to_json(), table.to_json()], allow_nan=False))
    assert Measurements.from_json(stored[0]) == measurements
    assert ComparisonTable.from_json(stored[1]) == table


def test_a_baseline_that_is_no_cell_is_refused():
    with pytest.raises(CalibrantError, match="'rloo' is not among the cells; choose one of grpo, gcpo_bot, gcpo_cd"):
        compare(measured(CELLS, (0, 0, 0), baseline="rloo"))
