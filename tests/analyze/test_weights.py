"""The weight that each method would give each group, and what it does to noise and signal."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from builders_analyze import lines_of
from made_up import random_groups

from calibrant.analyze.weights import WEIGHED, effect, group_weights, read_weights, weight_table
from calibrant.groups import Groups, valid
from calibrant.methods import METHODS, apply


def made_up(count, **weights):
    """Groups with a random V(q) and |g|^2 and weights that are functions of a line."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        variance, norm = (float(x) for x in torch.rand(2, generator=generator).double() + 0.1)
        truth = {"gradient_variance": variance, "mean_norm_squared": norm}
        line = {"outcome": "informative", "scorable": 5, "truth": truth}
        yield line | {"weights": {name: of(line) for name, of in weights.items()}}


def ratio(line):
    return line["truth"]["mean_norm_squared"] * (line["scorable"] - 1) / line["truth"]["gradient_variance"]


def test_weights_are_those_of_the_methods():
    groups = random_groups(binary=True)
    seen = 0
    for n in range(len(groups.rewards)):
        rewards = groups.rewards[n : n + 1]
        inputs = {name: x[n : n + 1] for name, x in groups.inputs.items() if name != "where"}
        inputs["total_rewards"] = rewards
        where = valid(rewards)
        found = group_weights(rewards, where, inputs, (0.0, 2.0))
        if not found:
            assert rewards[where].unique().numel() < 2
            continue
        seen += 1
        one = Groups(rewards, inputs)
        for name in ("gcpo_cd", "gcpo_bot", "gradient_snr", "grpo_kle"):
            weight = apply(name, one).weights[where]
            assert found[name] == pytest.approx(weight[0].item(), rel=1e-6)
        plain = apply("grpo", one).advantages.abs().sum()
        assert found["dr_grpo"] == pytest.approx((apply("dr_grpo", one).advantages.abs().sum() / plain).item())
        assert found["capo"] is None  # its bounds are measured over the first batches of a run
        assert found["gradient_snr depth=block"] == found["gradient_snr"]  # the same matrix here
    assert seen > 5


def test_a_method_whose_inputs_are_missing_has_no_weight():
    rewards = torch.tensor([[2.0, 0.0, 1.0]])
    found = group_weights(rewards, valid(rewards), {"total_rewards": rewards}, (0.0, 2.0))
    assert set(found) == set(WEIGHED) >= set(METHODS)
    assert found["grpo"] == pytest.approx(1.0, abs=1e-12) and found["rd_only"] > 1
    assert found["gcpo_cd"] is found["gradient_snr depth=block"] is found["egpo"] is None


def test_what_weights_follow():
    table = weight_table(
        made_up(60, grpo=lambda _: 1.0, gradient_snr=ratio, gcpo_cd=lambda line: 1 / line["truth"]["gradient_variance"],
                empo=lambda _: None), 50,
    )  # fmt: skip
    rows = table["rows"]
    assert table["groups"] == 60 and set(rows) == {"grpo", "gradient_snr", "gcpo_cd"}
    assert rows["grpo"]["snr"] is rows["grpo"]["variance"] is None and rows["grpo"]["cv"] == 0.0
    assert rows["gradient_snr"]["snr"] == [1.0, 1.0, 1.0]
    assert rows["gcpo_cd"]["variance"] == [-1.0, -1.0, -1.0] and 0.3 < rows["gcpo_cd"]["snr"][0] < 1
    value, low, _ = table["differences"]["gradient_snr"]["gcpo_cd"]
    assert value == pytest.approx(1 - rows["gcpo_cd"]["snr"][0]) and low > 0
    values = np.array([line["weights"]["gradient_snr"] for line in made_up(60, gradient_snr=ratio)])
    assert rows["gradient_snr"]["cv"] == pytest.approx(values.std() / values.mean())
    assert weight_table(made_up(4, grpo=ratio), 50) is None
    assert weight_table([{"outcome": "informative", "truth": {}}] * 9, 50) is None


def test_the_two_terms_of_the_variance_are_those_of_simulated_updates():
    """Updates `w g` with g = theta + noise in many dimensions, w independent of |theta|."""
    generator = torch.Generator().manual_seed(1)
    queries, size, draws, n = 4000, 30, 4, 5
    scale = torch.rand(queries, generator=generator).double() + 0.5
    direction = torch.randn(queries, size, generator=generator).double()
    theta = direction / direction.norm(dim=1, keepdim=True) * (torch.rand(queries, 1, generator=generator) + 0.5)
    weights = torch.rand(queries, generator=generator).double() * 2
    noise = torch.randn(draws, queries, size, generator=generator).double() * (scale / size).sqrt()[None, :, None]
    updates = weights[None, :, None] * (theta + noise)
    whole = (updates - updates.mean((0, 1))).square().sum(-1).mean()
    lines = [
        {"outcome": "informative", "scorable": n, "weights": {"grpo": float(w)},
         "truth": {"gradient_variance": float(s) * (n - 1), "mean_norm_squared": float(t.square().sum() + s)}}
        for w, s, t in zip(weights, scale, theta, strict=True)
    ]  # fmt: skip
    found = effect(weights, read_weights(lines))
    unit = (scale.mean() * weights.mean().square()).item()
    within = (weights.square() * scale).mean().item()
    assert found["noise"] == pytest.approx(within / unit, rel=1e-9)
    assert found["bias"] == pytest.approx(
        float(weights.var(correction=0) * theta.square().sum(1).mean()) / unit, rel=1e-6
    )
    # the whole variance also has that of theta itself, E[w]^2 Var(theta), which the paper leaves out
    of_theta = (weights.mean().square() * (theta - theta.mean(0)).square().sum(1).mean()).item()
    assert (found["noise"] + found["bias"]) * unit + of_theta == pytest.approx(whole.item(), rel=0.03)
    assert effect(torch.ones(queries).double(), read_weights(lines)) == pytest.approx(
        {"noise": 1.0, "bias": 0.0, "signal": 1.0}
    )
    assert effect(torch.zeros(queries).double(), read_weights(lines))["noise"] == 0.0


def test_an_analysis_has_weights_of_every_group(whole):
    table = json.loads((whole / "analysis.json").read_text())["weights"]
    informative = [line for line in lines_of(whole) if line["outcome"] == "informative"]
    if len(informative) >= 5:
        assert table["groups"] == len(informative)
    for line in informative:
        missing = {name for name, weight in line["weights"].items() if weight is None}
        assert {"grpo_care", "capo"} <= missing
        assert not missing & {"gcpo_bot", "grpo_kle", "seed_grpo", "empo", "egpo", "edge_grpo", "gradient_snr"}
        assert line["weights"]["grpo"] == pytest.approx(1.0, abs=1e-6)
        share = line["signals"]["block_signal_share"]
        assert line["weights"]["gradient_snr depth=block"] == pytest.approx(share, abs=1e-4)
        assert all(math.isfinite(w) and w >= 0 for w in line["weights"].values() if w is not None)
    assert all(line["weights"] == {} for line in lines_of(whole) if line["outcome"] != "informative")


def test_names_of_weights_are_methods():
    assert all(METHODS[method] for method, _ in WEIGHED.values())
    assert all(a != b for a, b in itertools.combinations(WEIGHED, 2))
