"""Signals and gradient variance of measured groups."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from builders_analyze import lines_of, rollouts_of

from calibrant.advantages import standardised
from calibrant.analyze.groups import given_group, groups_of_file
from calibrant.analyze.measure import measure_group
from calibrant.gradients import gradient_variance
from calibrant.policy.head import find_head
from calibrant.policy.models import load_policy
from calibrant.report.names import SIGNALS
from calibrant.signals import cosine_dispersion, reward_dispersion, semantic_entropy
from calibrant.text.embed import Embedder


def test_every_group_has_every_signal_and_its_variance(whole):
    lines = lines_of(whole)
    assert [line["index"] for line in lines] == list(range(6))
    for line in lines:
        assert set(line["signals"]) == set(SIGNALS)
        assert all(isinstance(x, float) for x in line["signals"].values())
        truth = line["truth"]
        assert truth["gradient_variance"] == pytest.approx(truth["variance_intra"] + truth["variance_inter"], rel=1e-5)
        assert (truth["gradient_variance"] > 0) == (line["outcome"] == "informative")
        assert truth["score_variance"] > 0
    assert len(rollouts_of(whole)) == 24


def test_signals_are_those_of_the_rollouts_that_are_written(whole):
    line, rows = lines_of(whole)[0], rollouts_of(whole)[:4]
    clusters = torch.tensor([[row["cluster"] for row in rows]])
    rewards = torch.tensor([[row["reward"] for row in rows]], dtype=torch.float64)
    embeddings = Embedder()([row["answer"] for row in rows])[None].double()
    found = line["signals"]
    assert found["semantic_entropy_discrete"] == semantic_entropy(clusters).double().item()
    assert found["reward_dispersion"] == reward_dispersion(rewards, (0.0, 2.0)).item()
    assert found["cosine_dispersion"] == pytest.approx(cosine_dispersion(embeddings).item(), rel=1e-5)
    means = [row["logprob"] / row["num_tokens"] for row in rows]
    assert found["mean_logprob"] == pytest.approx(sum(means) / 4)
    assert found["predictive_entropy"] == pytest.approx(-sum(row["logprob"] for row in rows) / 4)
    assert found["token_entropy"] == pytest.approx(sum(row["token_entropy"] for row in rows) / 4)
    assert line["success_rate"] == sum(row["correct"] for row in rows) / 4


def test_the_variance_is_that_of_one_backward_pass_a_rollout(whole, tools, tokenizer):
    index = next(line["index"] for line in lines_of(whole) if line["outcome"] == "informative")
    frame = groups_of_file(str(whole / "rollouts.jsonl"))[index]
    group = given_group(frame, tokenizer, 2048, torch.device("cpu"))
    advantages = standardised(torch.tensor([[row["reward"] for row in group.rows]], dtype=torch.float64))
    clusters = torch.tensor([[row["cluster"] for row in group.rows]])
    slow = gradient_variance(
        tools.model, group.tokens._asdict(), advantages, backend="loop", clusters=clusters, temperature=0.9
    )
    truth = lines_of(whole)[index]["truth"]
    for name in ("score_variance", "variance_inter", "mean_norm_squared"):
        assert truth[name] == pytest.approx(getattr(slow, name).item(), rel=1e-4)
    assert truth["gradient_variance"] == pytest.approx(slow.variance.item(), rel=1e-4)


def test_the_head_alone_is_the_gradient_of_the_head(whole, tokenizer):
    model = load_policy("demo")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # no longer the embedding's
    frame = groups_of_file(str(whole / "rollouts.jsonl"))[0]
    group = given_group(frame, tokenizer, 2048, torch.device("cpu"))
    advantages = standardised(torch.tensor([[row["reward"] for row in group.rows]]))
    exact = gradient_variance(model, group.tokens._asdict(), advantages, parameters="lm_head.weight", temperature=0.9)
    signals = lines_of(whole)[0]["signals"]
    assert signals["head_gradient_variance"] == pytest.approx(exact.variance.item(), rel=1e-3)
    assert signals["head_score_variance"] == pytest.approx(exact.score_variance.item(), rel=1e-3)


def test_an_entailment_model_makes_the_clusters(whole, tools, tokenizer):
    def matrix(groups):
        same = torch.tensor([[[a[:1] == b[:1] for b in group] for a in group] for group in groups])
        entails = torch.where(same, 0.5, 0.1)
        return torch.stack([0.5 - entails / 2, 0.5 - entails / 2, entails], dim=-1)

    frame = groups_of_file(str(whole / "rollouts.jsonl"))[1]
    group = given_group(frame, tokenizer, 2048, torch.device("cpu"))
    letters = [row["answer"][:1] for row in group.rows]
    settings = replace(tools.settings, entailment_threshold=0.4)
    judged = replace(tools, entailment=SimpleNamespace(matrix=matrix), settings=settings)
    line, rows = measure_group(0, group, judged)
    assert [row["cluster"] for row in rows] == [list(dict.fromkeys(letters)).index(letter) for letter in letters]
    assert line["clusters"] == len(set(letters))
    strict, _ = measure_group(0, group, replace(judged, settings=replace(settings, entailment_threshold=0.6)))
    assert strict["clusters"] == len(letters)
    assert strict["signals"]["kernel_language_entropy"] == line["signals"]["kernel_language_entropy"]
    assert strict["truth"]["variance_intra"] == pytest.approx(0.0, abs=1e-9 * strict["truth"]["gradient_variance"])
    assert line["truth"]["gradient_variance"] == strict["truth"]["gradient_variance"]


def test_without_a_linear_head_the_rest_is_measured(whole, tools, tokenizer, monkeypatch):
    capped = find_head(tools.model)._replace(softcap=30.0)
    monkeypatch.setattr("calibrant.analyze.measure.find_head", lambda _: capped)
    frame = groups_of_file(str(whole / "rollouts.jsonl"))[0]
    line, _ = measure_group(0, given_group(frame, tokenizer, 2048, torch.device("cpu")), tools)
    missing = {name for name, x in line["signals"].items() if x is None}
    assert missing == {
        "head_gradient_variance", "head_score_variance", "head_gradient_dispersion", "gradient_snr_weight",
    }  # fmt: skip
    assert line["truth"] == lines_of(whole)[0]["truth"]
