"""The recommendation."""

import math

import pytest
import torch
from refusals import refused

from calibrant.analyze.recommendation import ENOUGH, Evidence, paper_order, recommend, strength
from calibrant.errors import CalibrantError
from calibrant.methods import METHODS
from calibrant.report import write_analysis_report
from calibrant.report.names import PAPER_ORDER
from calibrant.signals import cosine_dispersion


def v_table(groups: int = 200, **rho: tuple[float, float, float]) -> dict:
    """A table with given rank correlations and intervals; differences are clear from 0.1 on."""
    rows = {name: {"rho": r, "low": low, "high": high, "auc": 0.5} for name, (r, low, high) in rho.items()}
    differences = {
        a: {b: [rho[a][0] - rho[b][0] + d for d in (0.0, -0.1, 0.1)] + [0.5] for b in rho if b != a} for a in rho
    }
    return {"groups": groups, "rows": rows, "differences": differences, "baseline_mae": 1.0, "left_out": []}


def around(rho: float) -> tuple[float, float, float]:
    return rho, rho - 0.05, rho + 0.05


ALL_SPREAD = {"groups": 200, "informative": 200, "all_right": 0, "all_wrong": 0, "equal": 0, "unscorable": 0}


def weighing(**snr) -> dict:
    """A table of weights with given rank correlations with the signal-to-noise ratio; None: equal weights."""
    rows = {
        name: {
            "mean": 1.0,
            "cv": 0.0 if of is None else 0.2,
            "snr": of and list(of),
            "variance": of and [0.1, 0.0, 0.2],
        }
        for name, of in snr.items()
    }
    varied = {name: of for name, of in snr.items() if of is not None}
    differences = {
        a: {b: [varied[a][0] - varied[b][0] + d for d in (0.0, -0.1, 0.1)] for b in varied if b != a} for a in varied
    }
    return {"groups": 200, "rows": rows, "differences": differences}


def advice(table: dict | None, *, shares: dict = ALL_SPREAD, high: dict | None = None, weights=None, rollouts=16):
    known = {"informative": table, "without_outliers": table} if table else {}
    return recommend(Evidence(shares, known, high or {}, rollouts, weights or weighing(grpo=None)))


def test_the_best_signal_and_the_method_with_the_best_weights():
    found = advice(
        v_table(barycentric_transport=around(0.6), cosine_dispersion=around(0.55), token_entropy=around(0.2)),
        high={"cosine_dispersion": 0.3, "reward_dispersion": 1.0},
        weights=weighing(grpo=None, gcpo_bot=around(0.35), gcpo_cd=around(0.4), egpo=around(0.1), empo=around(0.0)),
    )
    assert found["signal"]["name"] == "barycentric_transport"
    assert found["signal"]["not_led"] == ["cosine_dispersion"]
    assert "The data do not tell it from cosine dispersion (CD) (0.55)." in found["words"][0]
    method = found["method"]
    assert (method["name"], method["beside"], method["cv"]) == ("gcpo_cd", ["gcpo_bot"], 0.2)
    assert method["follows"] == pytest.approx([0.4, 0.35, 0.45]) and method["variance"] == [0.1, 0.0, 0.2]
    assert "ratio of the updates (0.40 [0.35, 0.45]; V(q): 0.10 [0.00, 0.20])" in found["words"][1]
    assert "the data do not tell it from gcpo_bot." in found["words"][1]
    assert found["alpha"]["default"] == 0.6
    alone = advice(v_table(cosine_dispersion=around(0.6), token_entropy=around(0.2)))
    assert "It leads every other signal." in alone["words"][0]
    assert "Every group has reward spread." in alone["words"]


def test_a_signal_that_a_method_reads_recommends_it_not():
    """gradient_snr reads the variance of the head's gradients, but its weights may follow nothing."""
    table = v_table(head_gradient_variance=around(0.92), barycentric_transport=around(0.04))
    found = advice(table, weights=weighing(grpo=None, gradient_snr=(-0.04, -0.3, 0.2), rd_only=around(-0.4)))
    assert found["signal"]["name"] == "head_gradient_variance"
    assert (found["method"]["name"], found["alpha"]) == ("grpo", None)
    assert found["words"][1].startswith("Method: grpo. No method's weights follow the signal-to-noise ratio")


def test_weights_that_hardly_vary_recommend_nothing():
    weights = weighing(gcpo_bot=around(0.9), gradient_snr=around(0.3))
    weights["rows"]["gcpo_bot"]["cv"] = 0.009
    found = advice(v_table(token_entropy=around(0.5)), weights=weights)
    assert (found["method"]["name"], found["method"]["beside"], found["alpha"]) == ("gradient_snr", [], None)


def test_without_a_signal_that_follows_it_is_said():
    found = advice(v_table(cosine_dispersion=(0.1, -0.1, 0.3), barycentric_transport=(0.05, -0.1, 0.2)))
    assert not found["signal"]["follows"]
    assert "its interval reaches 0" in found["words"][0]


def test_too_few_groups_get_no_recommendation():
    found = advice(v_table(ENOUGH - 1, cosine_dispersion=around(0.9)))
    assert found["signal"] is found["method"] is found["alpha"] is None
    assert advice(None, shares=ALL_SPREAD, weights=weighing(gcpo_cd=around(0.9)))["method"] is None
    assert "Give more --queries" in found["words"][0]
    assert advice(None, shares=dict.fromkeys(ALL_SPREAD, 0))["words"]


def test_how_strong_alpha_may_be():
    # damping: 1 - a / ln 16 * 0.5^2 = 1/4 at a = 0.75 ln 16 / 0.25; boost: 1 + a / ln 16 * 0.8 = 2 at a = ln 16 / 0.8
    high = {"cosine_dispersion": 0.5, "reward_dispersion": 0.8}
    evidence = Evidence(ALL_SPREAD, {}, high, 16, None)
    found = strength({"name": "gcpo_cd"}, evidence)
    assert found["most"] == pytest.approx(math.log(16) / 0.8)
    assert found["suggested"] == found["default"] == 0.6
    assert found["lowest"] == pytest.approx(1 - 0.6 / math.log(16) * 0.25)
    assert found["highest"] == pytest.approx(1 + 0.6 / math.log(16) * 0.8)
    few = strength({"name": "gcpo_cd"}, evidence._replace(rollouts=2, high={
        "cosine_dispersion": 1.0, "reward_dispersion": 0.0,
    }))  # fmt: skip
    assert few["most"] == pytest.approx(0.75 * math.log(2)) and few["suggested"] == few["most"] < 0.6
    entropy = strength({"name": "grpo_kle"}, evidence._replace(high={"kernel_language_entropy": math.log(16)}))
    assert entropy["most"] == pytest.approx(0.75 * math.log(16))
    assert strength({"name": "grpo"}, evidence) is None


def test_the_bound_on_alpha_is_that_of_the_methods_weights():
    rewards = torch.tensor([[2.0] * 8 + [0.0] * 8])
    embeddings = torch.eye(16)[None]
    u = cosine_dispersion(embeddings).item()
    evidence = Evidence(ALL_SPREAD, {}, {"cosine_dispersion": u, "reward_dispersion": 1.0}, 16, None)
    found = strength({"name": "gcpo_cd"}, evidence)
    scores = METHODS["gcpo_cd"](rewards, embeddings, None, alpha=found["most"]).scores
    assert scores["geometric_weight"].item() == pytest.approx(0.25, rel=1e-5)
    assert 1.5 < scores["reward_weight"].item() <= 2.0
    assert found["lowest"] == pytest.approx(
        METHODS["gcpo_cd"](rewards, embeddings, None).scores["geometric_weight"].item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"all_right": 120, "all_wrong": 20}, "too easy"),
        ({"all_right": 20, "all_wrong": 120}, "too hard"),
        ({"unscorable": 140}, "fix the reward function"),
        ({"all_right": 40, "all_wrong": 20}, None),
    ],
)
def test_groups_that_teach_nothing(shares, said):
    counted = {**ALL_SPREAD, **shares, "informative": 200 - sum(shares.values())}
    found = advice(v_table(cosine_dispersion=around(0.6)), shares=counted)
    idle = next(words for words in found["words"] if words.startswith("Groups without reward spread"))
    assert f"{sum(shares.values()) / 200:.1%}" in idle
    more = [words for words in found["words"] if words.startswith("Most groups")]
    assert [said in words for words in more] == ([True] if said else [])


def test_the_order_of_the_paper():
    rho = dict(zip(PAPER_ORDER, (0.6, 0.45, 0.3, 0.1), strict=True))
    found = paper_order(v_table(**{name: around(r) for name, r in rho.items()}))
    assert found["holds"] and found["clear"]
    close = paper_order(v_table(**{name: around(r / 2) for name, r in rho.items()}))
    assert close["holds"] and not close["clear"]
    turned = paper_order(v_table(**{name: around(1 - r) for name, r in rho.items()}))
    assert not turned["holds"] and next(iter(turned["found"])) == "token_entropy"
    assert paper_order(v_table(token_entropy=around(0.5))) is None
    words = advice(v_table(**{name: around(1 - r) for name, r in rho.items()}))["words"][-1]
    assert "is not found here, and one step is significantly reversed: token entropy 0.90, semantic" in words
    words = advice(v_table(**{name: around(0.5 - r / 10) for name, r in rho.items()}))["words"][-1]
    assert "is not found here, but no step is significantly reversed: token entropy 0.49" in words


def test_a_page_without_a_finished_analysis_is_refused(tmp_path):
    with pytest.raises(CalibrantError, match="other files"):
        write_analysis_report(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{bro", b"[1]", b"{}", b"\xff\xfe"])
def test_a_page_from_damaged_tables_is_refused(tmp_path, capsys, content):
    (tmp_path / "config.yaml").write_text("command: analyze\nsettings: {}\n")
    (tmp_path / "groups.jsonl").write_text("")
    (tmp_path / "analysis.json").write_bytes(content)
    assert "analysis.json' is damaged" in refused(capsys, "report", str(tmp_path))
