"""Tables of an analysis."""

from collections.abc import Iterator

import pytest
import torch

from calibrant.analyze.tables import (
    association_table,
    association_tables,
    outcome_counts,
    outliers,
    read_columns,
    subsets,
)
from calibrant.report.names import SIGNALS


def made_up(count: int, *, idle: int = 0) -> Iterator[dict]:
    """Groups whose V(q) is their cosine dispersion to the digit; the first `idle` have no spread."""
    generator = torch.Generator().manual_seed(1)
    for i in range(count):
        noise = torch.rand(len(SIGNALS), generator=generator, dtype=torch.float64).tolist()
        spread = i >= idle
        variance = noise[list(SIGNALS).index("cosine_dispersion")] if spread else 0.0
        yield {
            "index": i, "scorable": 4, "rollouts": 4, "outcome": "informative" if spread else "all_wrong",
            "signals": dict(zip(SIGNALS, noise, strict=True)), "success_rate": 1 - noise[0],
            "truth": {
                "gradient_variance": variance, "score_variance": noise[1], "mean_norm_squared": noise[2],
                "variance_intra": variance, "variance_inter": 0.0,
            },
        }  # fmt: skip


def test_tables_find_what_was_put_in():
    found = read_columns(made_up(120, idle=40))
    assert outcome_counts(found) == {
        "groups": 120, "informative": 80, "all_right": 0, "all_wrong": 40, "equal": 0, "unscorable": 0,
    }  # fmt: skip
    chosen = subsets(found)
    assert {name: int(where.sum()) for name, where in chosen.items()} == {
        "all": 120, "without_outliers": 118, "informative": 80,
    }  # fmt: skip
    largest = found.targets["gradient_variance"].topk(2).indices
    assert not chosen["without_outliers"][largest].any()
    made = association_tables(found)
    assert set(made["success_rate"]) == {"all", "informative"}
    row = made["gradient_variance"]["informative"]["rows"]["cosine_dispersion"]
    assert (row["rho"], row["low"], row["high"], row["auc"], row["precision"]) == (1.0, 1.0, 1.0, 1.0, 1.0)
    assert row["mae"] < 1e-9 and row["held_out"] == 1.0
    assert made["gradient_variance"]["all"]["rows"]["cosine_dispersion"]["rho"] < 0.9
    assert made["success_rate"]["all"]["rows"]["token_entropy"]["rho"] == -1.0
    difference = made["gradient_variance"]["informative"]["differences"]["cosine_dispersion"]["token_entropy"]
    assert difference[0] == pytest.approx(1 - made["gradient_variance"]["informative"]["rows"]["token_entropy"]["rho"])
    assert difference[1] > 0
    table = made["gradient_variance"]["informative"]
    area = table["auc_differences"]["cosine_dispersion"]["token_entropy"]
    assert area[0] == pytest.approx(1 - table["rows"]["token_entropy"]["auc"]) and area[1] <= area[0] <= area[2]
    assert made["success_rate"]["all"]["auc_differences"] == {}
    assert association_table(found, "gradient_variance", chosen["all"]) == made["gradient_variance"]["all"]


def test_confidences_are_negated_and_missing_numbers_are_out():
    lines = list(made_up(40))
    for i, line in enumerate(lines):
        line["signals"]["self_consistency"] = -line["truth"]["gradient_variance"]
        line["signals"]["head_gradient_variance"] = None
        line["signals"]["token_entropy"] = None if i < 3 else line["signals"]["token_entropy"]
    found = read_columns(lines)
    result = association_table(found, "gradient_variance", subsets(found)["all"])
    assert result["rows"]["self_consistency"]["rho"] == 1.0
    assert result["left_out"] == ["head_gradient_variance"]
    assert result["groups"] == 37
    assert association_table(found, "gradient_variance", torch.arange(40) < 4) is None


def test_how_many_outliers():
    assert [outliers(n) for n in (10, 50, 199, 200, 5000)] == [0, 1, 3, 20, 20]
