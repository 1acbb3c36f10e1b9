"""The plain advantages and GCPO: numbers by hand, and the loops of oracles on random groups."""

import math

import oracles
import pytest
import torch
from builders_methods import groups_of_four
from made_up import DTYPES, INF, NAN, lists, random_groups, row, weighs

from calibrant.advantages import centred, leave_one_out, standardised
from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import (
    METHODS,
    apply,
    gcpo_bot,
    gcpo_cd,
    grpo,
    grpo_kle,
    rd_only,
)

GCPO = ["rd_only", "gcpo_cd", "gcpo_bot", "gcpo_grad"]


def test_the_plain_ones_are_their_base():
    groups = random_groups()
    for name, base in (("grpo", standardised), ("dr_grpo", centred), ("rloo", leave_one_out)):
        outcome = apply(name, groups)
        assert torch.equal(outcome.advantages, base(groups.rewards, groups.where))
        assert torch.equal(outcome.weights, torch.ones(25, 6).double())
        assert METHODS[name](groups.rewards, None).base == base.__name__ and outcome.scores == {}


def test_the_plain_ones_by_hand():
    # mean 1/4, std 1/2
    found = {name: apply(name, Groups(row(1, 0, 0, 0))).advantages[0] for name in ("grpo", "dr_grpo", "rloo")}
    assert found["grpo"].tolist() == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3])
    assert found["dr_grpo"].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert found["rloo"].tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_gcpo_of_four():
    cd, bot, rd = (apply(name, groups_of_four()) for name in ("gcpo_cd", "gcpo_bot", "rd_only"))
    # alpha_G = 0.6 / ln 4 = 0.4328085
    # 1 - 0.4328085 * 0.375^2; 1 - 0.4328085 * 0.0943789^2; 1 + 0.4328085 * 0.75
    assert cd.scores["cosine_dispersion"].item() == pytest.approx(0.375, abs=1e-7)
    assert cd.scores["geometric_weight"].item() == pytest.approx(0.9391363, abs=1e-7)
    assert bot.scores["barycentric_transport"].item() == pytest.approx(0.0943789, abs=1e-7)
    assert bot.scores["geometric_weight"].item() == pytest.approx(0.9961448, abs=1e-7)
    for outcome in (cd, bot, rd):
        assert outcome.scores["reward_dispersion"].item() == pytest.approx(0.75, abs=1e-7)
        assert outcome.scores["reward_weight"].item() == pytest.approx(1.3246064, abs=1e-7)
    assert cd.weights[0].tolist() == pytest.approx([0.9391363 * 1.3246064] * 4, abs=1e-6)
    assert bot.weights[0].tolist() == pytest.approx([0.9961448 * 1.3246064] * 4, abs=1e-6)
    assert rd.weights[0].tolist() == pytest.approx([1.3246064] * 4, abs=1e-6)
    # mean 0.75, std sqrt((1.5625 + 0.5625 + 0.5625 + 0.0625) / 3) = 0.9574271
    base = [x / (0.9574271 + 1e-4) for x in (1.25, -0.75, -0.75, 0.25)]
    assert cd.advantages[0].tolist() == pytest.approx([a * 0.9391363 * 1.3246064 for a in base], abs=1e-6)


def test_the_scores_of_gcpo():
    found = {name: list(apply(name, groups_of_four()).scores) for name in GCPO}
    weights = ["geometric_weight", "reward_weight"]
    assert found == {
        "rd_only": ["reward_dispersion", "reward_weight"],
        "gcpo_cd": ["cosine_dispersion", "reward_dispersion", *weights],
        "gcpo_bot": ["barycentric_transport", "reward_dispersion", *weights],
        "gcpo_grad": ["gradient_dispersion", "reward_dispersion", *weights],
    }


@pytest.mark.parametrize("name", GCPO)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gcpo_is_the_loop(name, dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply(name, groups, alpha=0.9, reward_range=(0.0, 2.5))
    for n in range(25):
        r, e, c, k, w = lists(groups, n, "rewards", "embeddings", "clusters", "head_gram", "where")
        uncertainty = {
            "rd_only": 0.0,
            "gcpo_cd": oracles.cosine_dispersion(e, w),
            "gcpo_bot": oracles.barycentric_transport(e, c, w),
            "gcpo_grad": oracles.head_gradient_dispersion(k, w),
        }[name]
        weight = oracles.gcpo_weight(uncertainty, oracles.reward_dispersion(r, w, 0.0, 2.5), sum(w), 0.9)
        weighs(outcome, n, [weight] * 6, oracles.standardised(r, w), dtype)


def test_alpha_uses_the_number_of_scorable_rollouts():
    # 4 of 6 are scorable: alpha_G = 0.6 / ln 4, half of them right: RD = 1
    assert rd_only(row(2, 0, NAN, 2, 0, NAN), None).weights[0].tolist() == pytest.approx([1 + 0.6 / math.log(4)] * 6)


@pytest.mark.parametrize(
    "name, options, message",
    [
        *[(name, {"alpha": a}, "alpha") for name in (*GCPO, "grpo_se", "seed_grpo") for a in (-0.1, NAN, INF, "0.6")],
        *[(name, {"reward_range": (1.0, 1.0)}, "reward_range") for name in (*GCPO, "q_hawkeye", "grpo_care", "egpo")],
        ("rd_only", {"alpha": None}, "alpha"),
        ("grpo_se", {"shape": "square"}, "shape has to be one of 'reciprocal', 'linear'"),
        ("grpo_se", {"mass": "weight"}, "mass has to be one of"),
        ("grpo_se", {"estimator": "freq"}, "estimator"),
        ("grpo_kle", {"shape": "square"}, "shape has to be one of"),
        ("grpo_kle", {"kernel": "cold"}, "kernel"),
        ("grpo_kle", {"t": 0.0}, "t has to be"),
        ("grpo_kle", {"mix": -0.1}, "mix has to be a number in"),
        ("grpo_kle", {"mix": 1.5}, "mix has to be a number in"),
        ("grpo_kle", {"alpha": -1.0}, "alpha"),
        ("seed_grpo", {"form": "damp"}, "form has to be one of 'reciprocal', 'linear'"),
        ("seed_grpo", {"estimator": "best"}, "estimator has to be one of 'rao', 'freq', 'mc'"),
        ("empo", {"gate": "none"}, "gate has to be one of None, 'all_distinct'"),
        ("empo", {"min_majority": 1.5}, "min_majority"),
        ("empo", {"empty_reward": NAN}, "empty_reward"),
        ("empo", {"empty_reward": True}, "empty_reward"),
        *[("empo", {"entropy_range": bad}, "entropy_range") for bad in ((1.0, 0.5), (1.0,), "ab", 3, (NAN, 1.0))],
        ("grpo_care", {"bonus": -1.0}, "bonus"),
        ("grpo_care", {"margin": -0.1}, "margin"),
        ("grpo_care", {"upper": 0.0}, "upper"),
        ("grpo_care", {"upper": 1.1}, "upper"),
        ("grpo_care", {"threshold": -0.1}, "threshold"),
        *[("capo", {"tau": tau}, "tau has to be") for tau in (0.0, -1.0, NAN, INF, None, "1", True)],
        ("capo", {"ref_high": 0.0}, "ref_high"),
        ("capo", {"ref_low": NAN}, "ref_low"),
        ("capo", {"normalise": "mean"}, "normalise has to be one of 'sum', 'group', 'pairs'"),
        ("egpo", {"low": 1.1}, "low <= 1 <= high"),
        ("egpo", {"high": 0.9}, "low <= 1 <= high"),
        ("egpo", {"low": -0.1}, "low"),
        ("egpo", {"high": INF}, "low <= 1 <= high"),
        ("egpo", {"eps": 0.0}, "eps"),
        ("egpo", {"nsr_share": 1.1}, "nsr_share"),
        ("egpo", {"reading": "paper"}, "reading has to be one of"),
        ("egpo", {"renormalise": "mean"}, "renormalise has to be one of"),
        ("edge_grpo", {"low": 0.0}, "low"),
        ("edge_grpo", {"low": 1.5}, "low <= 1 <= high"),
        ("edge_grpo", {"high": 0.5}, "low <= 1 <= high"),
        ("eg_spo", {"gate": "open"}, "gate has to be one of"),
        ("eg_spo", {"quantile": -0.1}, "quantile"),
        ("eg_spo", {"phi": 1.1}, "phi"),
        ("q_hawkeye", {"form": "square"}, "form has to be one of"),
        ("q_hawkeye", {"alpha": -0.1}, "alpha"),
        ("r2vpo", {"penalty": -1.0}, "penalty"),
        ("r2vpo", {"penalty": INF}, "penalty"),
    ],
)
def test_options_out_of_their_range_are_refused(name, options, message):
    with pytest.raises(CalibrantError, match=message):
        apply(name, random_groups(3, binary=True), **options)


def test_methods_show_shapes():
    with pytest.raises(
        CalibrantError, match=r"gcpo_cd: expected rewards \[N, G\] and embeddings \[N, G, D\].*\[2, 5, 3\]"
    ):
        gcpo_cd(torch.zeros(2, 4), torch.zeros(2, 5, 3), None)
    with pytest.raises(CalibrantError, match=r"gcpo_bot.*clusters \[2, 3\]"):
        gcpo_bot(torch.zeros(2, 4), torch.zeros(2, 4, 3), torch.zeros(2, 3).long(), None)
    with pytest.raises(CalibrantError, match=r"grpo.*\[N, G\].*\[8\]"):
        grpo(torch.zeros(8), None)
    with pytest.raises(CalibrantError, match=r"grpo_kle.*entailment \[N, G, G, L\].*\[2, 4, 4\]"):
        grpo_kle(torch.zeros(2, 4), torch.zeros(2, 4, 4), None)
    with pytest.raises(CalibrantError, match=r"\(contradiction, neutral, entailment\), got \[2, 4, 4, 2\]"):
        grpo_kle(torch.zeros(2, 4), torch.zeros(2, 4, 4, 2), None)
