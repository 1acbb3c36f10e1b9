"""Methods that damp by entropies of meanings: numbers by hand, and the loops of oracles."""

import math

import oracles
import pytest
import torch
from made_up import DTYPES, NAN, lists, random_groups, row, weighs

from calibrant.errors import CalibrantError
from calibrant.methods import (
    apply,
    empo,
    grpo_kle,
    grpo_se,
    seed_grpo,
)
from calibrant.methods.outcome import multiply
from calibrant.signals import kernel_language_entropy

FORMS = {"reciprocal": 0.0417, "linear": 0.02, "exponential": 0.02, "focal": 0.02}


def test_semantic_entropy_as_a_weight_by_hand():
    rewards, clusters = row(2, 0, 0, 1), torch.tensor([[0, 0, 1, 2]])
    # SE = 0.5 ln 2 + 0.5 ln 4 = 1.0397208, u = 0.75
    outcome = grpo_se(rewards, clusters, None)
    assert outcome.scores["semantic_entropy"].item() == pytest.approx(1.0397208, abs=1e-7)
    assert outcome.scores["normalised_entropy"].item() == pytest.approx(0.75)
    assert outcome.weights[0].tolist() == pytest.approx([1 / (1 + 0.0417 * 0.75)] * 4, abs=1e-9)
    assert grpo_se(rewards, clusters, None, shape="linear").weights[0, 0] == pytest.approx(1 - 0.02 * 0.75)
    assert grpo_se(rewards, clusters, None, shape="linear", alpha=0.6).weights[0, 0] == pytest.approx(1 - 0.6 * 0.75)
    damped = grpo_se(rewards, clusters, None, shape="damp")  # alpha_G = 0.6 / ln 4
    assert damped.weights[0].tolist() == pytest.approx([1 - 0.4328085 * 0.5625] * 4, abs=1e-6)
    # likelihoods: SE .9356538, u .6749316
    logprobs = row(-0.1, -0.2, -0.4, -0.8)
    likely = grpo_se(rewards, clusters, None, logprobs, mass="likelihood")
    assert likely.scores["semantic_entropy"].item() == pytest.approx(0.9356538, abs=1e-7)
    assert likely.scores["normalised_entropy"].item() == pytest.approx(0.6749316, abs=1e-7)
    assert torch.equal(grpo_se(rewards, clusters, None, logprobs).weights, outcome.weights)


def test_seed_by_hand():
    rewards, clusters = row(1, 0, 0, 1), torch.tensor([[0, 0, 1, 2]])
    found = {form: seed_grpo(rewards, clusters, None, form=form, estimator="freq") for form in FORMS}
    weights = {form: outcome.weights[0, 0].item() for form, outcome in found.items()}
    # u = 0.75
    assert weights == pytest.approx(
        {"reciprocal": 0.9696735, "linear": 0.985, "exponential": 0.9851119, "focal": 0.25**0.02}, abs=1e-7
    )
    assert found["linear"].base == "centred"
    linear = multiply(found["linear"], rewards).advantages[0].tolist()
    assert linear == pytest.approx([0.4925, -0.4925, -0.4925, 0.4925])
    likely = seed_grpo(rewards, clusters, None, row(-0.1, -0.2, -0.4, -0.8))
    assert likely.scores["semantic_entropy"].item() == pytest.approx(0.9356538, abs=1e-7)
    assert likely.weights[0, 0].item() == pytest.approx(1 / (1 + 0.0417 * 0.6749316), abs=1e-8)


def test_the_estimate_of_equation_5_is_clipped():
    # p = [.99, .01]: -(ln .99 + ln .01) / 2 = 2.3076 > ln 2
    logprobs = row(math.log(0.99), math.log(0.01))
    outcome = seed_grpo(row(1, 0), torch.tensor([[0, 1]]), None, logprobs, estimator="mc", form="linear", alpha=1.0)
    assert outcome.scores["semantic_entropy"].item() == pytest.approx(2.3076, abs=1e-4)
    assert outcome.scores["normalised_entropy"].item() == 1.0 and (outcome.weights == 0).all()


def test_a_linear_weight_is_never_negative():
    clusters = torch.tensor([[0, 1]])
    assert (seed_grpo(row(1, 0), clusters, None, form="linear", estimator="freq", alpha=3.0).weights == 0).all()
    assert (grpo_se(row(1, 0), clusters, None, shape="linear", alpha=3.0).weights == 0).all()


@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_the_focal_form_of_all_apart_is_zero_whatever_the_rounding(size):
    rewards, clusters = torch.rand(1, size), torch.arange(size)[None]
    logprobs = torch.full((1, size), -0.7)
    assert (seed_grpo(rewards, clusters, None, logprobs, form="focal").weights == 0).all()


@pytest.mark.parametrize("shape", ["damp", *FORMS])
@pytest.mark.parametrize("mass", ["count", "likelihood"])
@pytest.mark.parametrize("estimator", ["rao", "mc"])
def test_semantic_entropy_as_a_weight_is_the_loop(shape, mass, estimator):
    groups = random_groups()
    outcome = apply("grpo_se", groups, shape=shape, mass=mass, estimator=estimator, alpha=0.7)
    for n in range(25):
        r, c, lp, w = lists(groups, n, "rewards", "clusters", "mean_logprob", "where")
        u = oracles.meaning_share(c, None if mass == "count" else lp, w, estimator)
        weight = oracles.shaped_weight(shape, u, 0.7, sum(w))
        weighs(outcome, n, [weight] * 6, oracles.standardised(r, w), torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ["rao", "mc", "freq"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_seed_is_the_loop(form, estimator, dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("seed_grpo", groups, form=form, estimator=estimator)
    for n in range(25):
        r, c, lp, w = lists(groups, n, "rewards", "clusters", "mean_logprob", "where")
        u = oracles.meaning_share(c, *((None, w) if estimator == "freq" else (lp, w, estimator)))
        weight = oracles.shaped_weight(form, u, FORMS[form], sum(w))
        weighs(outcome, n, [weight] * 6, oracles.centred(r, w), dtype)


def kle_extremes(size):
    return torch.eye(3, dtype=torch.float64)[:, None, None].expand(3, size, size, 3)


def test_kernel_entropy_as_a_weight_between_one_meaning_and_all_apart():
    rewards = row(2, 0, 0, 1).expand(3, 4)
    outcome = grpo_kle(rewards, kle_extremes(4), None)
    apart, neutral, same = outcome.scores["kernel_entropy"].tolist()
    assert (apart, same) == (1.0, 0.0) and 0 < neutral < 1
    assert outcome.weights[:, 0].tolist() == pytest.approx([1 - 0.4328085, 1 - 0.4328085 * neutral**2, 1.0], abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"t": 0.4}, {"kernel": "matern", "nu": 2, "kappa": 1.5}, {"mix": 0.3}, {"mix": 0.6, "mass": "likelihood"}],
)
def test_kernel_entropy_as_a_weight_is_the_loop(options):
    groups = random_groups(6, 5)
    outcome = apply("grpo_kle", groups, shape="exponential", alpha=0.7, **options)
    mix, likely = options.get("mix"), options.get("mass") == "likelihood"
    graph_options = {"kernel": "heat"} | {k: v for k, v in options.items() if k not in ("mix", "mass")}
    for n in range(6):
        r, e, c, lp, w = lists(groups, n, "rewards", "entailment", "clusters", "mean_logprob", "where")
        mask = [m and (not likely or math.isfinite(x)) for m, x in zip(w, lp, strict=True)]
        blank = [not math.isfinite(e[i][0][0]) for i in range(5)]
        e = [[[1.0, 0.0, 0.0] if blank[i] or blank[j] else e[i][j] for j in range(5)] for i in range(5)]

        def entropy(graph, clusters, log_mass, mask=mask):
            mixture = {"alpha": mix, "log_mass": log_mass, "clusters": clusters} if mix is not None else {}
            return oracles.kernel_language_entropy(graph, mask, **graph_options, **mixture)

        u = 0.0
        if sum(mask) >= 2:
            lowest = entropy([[[0.0, 0.0, 1.0]] * 5] * 5, [0] * 5, [0.0] * 5)
            highest = math.log(sum(mask))
            u = oracles.clip((entropy(e, c, lp if likely else [0.0] * 5) - lowest) / (highest - lowest), 0, 1)
        assert outcome.scores["kernel_entropy"][n].item() == pytest.approx(u, abs=1e-9)
        weight = oracles.shaped_weight("exponential", u, 0.7, sum(w))
        assert outcome.weights[n].tolist() == pytest.approx([weight] * 5, abs=1e-9)
        expected = [a * weight for a in oracles.standardised(r, w)]
        assert outcome.advantages[n].tolist() == pytest.approx(expected, abs=1e-8)


def test_an_answer_without_entailment_stands_alone():
    entailment = kle_extremes(4)[2:].clone()
    entailment[0, 1], entailment[0, :, 1] = NAN, NAN
    apart = kle_extremes(4)[2:].clone()
    apart[0, 1] = apart[0, :, 1] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    scores = [grpo_kle(row(2, 0, 0, 1), e, None).scores["kernel_entropy"].item() for e in (entailment, apart)]
    assert scores[0] == scores[1] > 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r, c: seed_grpo(r, c, None), r"seed_grpo needs the input 'mean_logprob' \(.*estimator='freq' does not"),
        (lambda r, c: seed_grpo(r, c, None, estimator="mc"), r"seed_grpo needs the input 'mean_logprob'"),
        (lambda r, c: grpo_se(r, c, None, mass="likelihood"), r"grpo_se needs the input 'mean_logprob' .*likelihood"),
        (lambda r, c: grpo_kle(r, kle_extremes(2)[:1], None, mix=0.5), r"grpo_kle needs the input 'clusters' .*mix"),
        (
            lambda r, c: grpo_kle(r, kle_extremes(2)[:1], None, c, mix=0.5, mass="likelihood"),
            r"grpo_kle needs the input 'mean_logprob' .*likelihood",
        ),
        (lambda r, c: empo(c, None, empty_reward=0.0), r"empo needs the input 'empty' .*empty_reward"),
    ],
)
def test_an_optional_input_that_an_option_needs(call, message):
    with pytest.raises(CalibrantError, match=message):
        call(row(1, 0), torch.tensor([[0, 1]]))


@pytest.mark.parametrize(("shape", "strength"), [*FORMS.items(), ("damp", 0.6)])
def test_each_shape_has_a_strength_of_its_own(shape, strength):
    groups = random_groups()
    for name, option in (("grpo_se", "shape"), ("grpo_kle", "shape"), *([("seed_grpo", "form")] * (shape in FORMS))):
        default, given = (apply(name, groups, **{option: shape}, **more) for more in ({}, {"alpha": strength}))
        assert torch.equal(default.weights, given.weights) and (default.weights < 1).any()


def test_the_published_time_of_the_heat_kernel():
    groups = random_groups(nan=0.0)
    published = apply("grpo_kle", groups, t="published")
    assert torch.equal(published.weights, apply("grpo_kle", groups, t=0.3).weights)
    assert not torch.equal(published.weights, apply("grpo_kle", groups).weights)
    with pytest.raises(CalibrantError, match="t has to be one of 'published', got 'paper'"):
        apply("grpo_kle", groups, t="paper")
    sixteen = torch.eye(3, dtype=torch.float64)[:, None, None].expand(3, 16, 16, 3)  # contradict, neutral, entail
    shares = {t: kernel_language_entropy(sixteen, "heat", t=t).tolist() for t in (0.3, None)}  # the numbers of the page
    assert [x / math.log(16) for x in shares[0.3]] == pytest.approx([1.0, 0.232, 0.004], abs=5e-4)
    assert [x / math.log(16) for x in shares[None]] == pytest.approx([1.0, 0.664, 0.091], abs=5e-4)
