"""What each method computes: numbers by hand, and the slow loops of oracles.py on random groups."""

import math

import oracles
import pytest
import torch
from made_up import DTYPES, INF, NAN, called, lists, random_groups, row, weighs

from calibrant.advantages import centred, leave_one_out, standardised
from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import (
    METHODS,
    apply,
    edge_grpo,
    eg_spo,
    empo,
    gcpo_bot,
    gcpo_cd,
    gcpo_grad,
    gradient_snr,
    grpo,
    grpo_kle,
    grpo_se,
    q_hawkeye,
    r2vpo,
    rd_only,
    seed_grpo,
)
from calibrant.methods.outcome import multiply

GCPO = ["rd_only", "gcpo_cd", "gcpo_bot", "gcpo_grad"]
FORMS = {"reciprocal": 0.0417, "linear": 0.02, "exponential": 0.02, "focal": 0.02}


# Plain


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


# GCPO


def groups_of_four():
    embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]], dtype=torch.float64)
    inputs = {"embeddings": embeddings, "clusters": torch.tensor([[0, 0, 1, 1]])}
    return Groups(row(2, 0, 0, 1), {**inputs, "head_gram": embeddings @ embeddings.mT})


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


# The policy's own gradients


def test_gcpo_of_gradients_by_hand():
    # the mean of (1, 0), (1, 0), (0, 1), (0.6, 0.8) is (0.65, 0.45), |mean|^2 = 0.4225 + 0.2025, mean |g|^2 = 1
    outcome = apply("gcpo_grad", groups_of_four())
    assert outcome.scores["gradient_dispersion"].item() == pytest.approx(0.375)
    assert outcome.weights[0].tolist() == pytest.approx([0.9391363 * 1.3246064] * 4, abs=1e-6)


def test_the_signal_of_four():
    # A = (1.25, -0.75, -0.75, 0.25) but for a factor: a = (1.25, 0), (-0.75, 0), (0, -0.75), (0.15, 0.2)
    # mean (0.1625, -0.1375), |mean|^2 = 0.0453125; sum |a|^2 = 1.5625 + 2 * 0.5625 + 0.0625 = 2.75
    # S^2 = (2.75 - 4 * 0.0453125) / 3 = 0.85625, S^2 / 4 = 0.2140625 > |mean|^2: all is noise
    found = apply("gradient_snr", groups_of_four())
    assert found.weights.tolist() == [[0.0] * 4] and found.advantages.tolist() == [[0.0] * 4]
    assert found.scores["signal_share"].tolist() == [0.0]
    scale = (0.9574271 + 1e-4) ** 2
    assert found.scores["head_variance"].item() == pytest.approx(0.85625 * 3 / 4 / scale, rel=1e-6)
    # at alpha = 0.1: 1 - 0.1 * 0.2140625 / 0.0453125 = 1 - 0.4724138
    weak = apply("gradient_snr", groups_of_four(), alpha=0.1)
    assert weak.weights[0].tolist() == pytest.approx([1 - 0.4724138] * 4, abs=1e-6)
    assert weak.scores["signal_share"].tolist() == [0.0]  # at alpha = 1, whatever alpha is
    both = apply("gradient_snr", groups_of_four(), alpha=0.1, reward_alpha=0.6)
    assert both.scores["reward_weight"].item() == pytest.approx(1.3246064, abs=1e-6)
    assert both.weights[0].tolist() == pytest.approx([0.5275862 * 1.3246064] * 4, abs=1e-6)
    assert list(found.scores) == ["signal_share", "head_variance"]
    assert list(both.scores) == ["signal_share", "head_variance", "reward_dispersion", "reward_weight"]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_signal_is_that_of_the_loop(alpha, dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("gradient_snr", groups, alpha=alpha, reward_alpha=0.9, reward_range=(0.0, 2.5))
    seen = set()
    for n in range(25):
        r, k, w = lists(groups, n, "rewards", "head_gram", "where")
        base = oracles.standardised(r, w)
        share = oracles.signal_share(k, base, w, alpha)
        weight = share * oracles.gcpo_weight(0.0, oracles.reward_dispersion(r, w, 0.0, 2.5), sum(w), 0.9)
        weighs(outcome, n, [weight] * 6, base, dtype)
        seen.add("all" if share == 1 else "none" if share == 0 else "some")
    assert seen >= {"none", "some"}


def test_gradients_that_say_nothing_leave_the_advantage_alone():
    rewards = row(2, 0, 1, 0).expand(4, 4).clone()
    rewards[3] = 0.3
    gram = torch.eye(4).double().expand(4, 4, 4).clone()
    gram[0] = 0.0  # empty completions: no noise
    gram[1] = NAN
    gram[2, 1:, 1:] = NAN  # a single gradient that is known
    found = called(gradient_snr)(rewards, gram, None)
    assert found.weights.tolist() == [[1.0] * 4] * 4
    assert torch.equal(found.advantages, standardised(rewards, ~rewards.isnan()))
    assert (found.advantages[3] == 0).all() and found.scores["head_variance"].tolist() == [0.0] * 4
    dispersion = gcpo_grad(rewards, gram, None).scores["gradient_dispersion"]
    assert dispersion.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.75])


def test_a_rollout_without_a_finite_gradient_is_left_out_of_the_weight_alone():
    groups = random_groups(nan=0.0)
    gram = groups.inputs["head_gram"].clone()
    spoiled, without = gram.clone(), torch.ones(25, 6).bool()
    spoiled[:, 2], spoiled[:, :, 2], without[:, 2] = INF, NAN, False
    base = standardised(groups.rewards, torch.ones(25, 6).bool())
    found = called(gradient_snr)(groups.rewards, spoiled, None)
    expected = [
        oracles.signal_share(k, a, w) for k, a, w in zip(*(x.tolist() for x in (gram, base, without)), strict=True)
    ]
    assert found.weights[:, 0].tolist() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(found.advantages, base * found.weights)


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"alpha": INF}, {"reward_alpha": -0.1}, {"reward_alpha": NAN}])
def test_strengths_of_the_shrinkage_that_cannot_be(options):
    with pytest.raises(CalibrantError, match=f"{next(iter(options))} has to be a finite number of at least 0"):
        gradient_snr(row(2, 0), torch.eye(2)[None], None, **options)
    with pytest.raises(CalibrantError, match="G is 2 in rewards and 3 in head_gram"):
        gradient_snr(row(2, 0), torch.eye(3)[None], None)


# Semantic entropy


def test_semantic_entropy_as_a_weight_by_hand():
    rewards, clusters = row(2, 0, 0, 1), torch.tensor([[0, 0, 1, 2]])
    # SE = 0.5 ln 2 + 0.5 ln 4 = 1.0397208, u = 0.75, alpha_G = 0.6 / ln 4
    outcome = grpo_se(rewards, clusters, None)
    assert outcome.scores["semantic_entropy"].item() == pytest.approx(1.0397208, abs=1e-7)
    assert outcome.scores["normalised_entropy"].item() == pytest.approx(0.75)
    assert outcome.weights[0].tolist() == pytest.approx([1 - 0.4328085 * 0.5625] * 4, abs=1e-6)
    assert grpo_se(rewards, clusters, None, shape="linear").weights[0, 0] == pytest.approx(1 - 0.6 * 0.75)
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


# Token entropy


def test_edge_by_hand():
    # entropies 1 and 3: ratios 1/2 and 3/2; .3 and .6: ratios 2/3 and 4/3
    outcome = edge_grpo(torch.tensor([[3.0, -3.0]] * 2), torch.tensor([[1.0, 3.0], [0.3, 0.6]]), None)
    assert outcome.weights.tolist() == [pytest.approx([2, 2 / 3]), pytest.approx([1.5, 0.75])]
    assert outcome.scores["entropy_ratio"].tolist() == [pytest.approx([0.5, 1.5]), pytest.approx([2 / 3, 4 / 3])]
    assert [3 * w for w in outcome.weights[0].tolist()] == pytest.approx([6, 2])


def test_edge_is_clamped_and_neutral_where_nothing_is_known():
    rewards = torch.tensor([[1.0, 0.0, 0.0]]).double()
    assert edge_grpo(rewards, row(0, 1, 2), None).weights[0].tolist() == pytest.approx([10, 1, 0.5])
    assert edge_grpo(rewards, row(0.0, 0.0, 0.0), None).weights.tolist() == [[1, 1, 1]]
    assert edge_grpo(rewards, row(0.4, 0.4, 0.4), None).weights.tolist() == [[1, 1, 1]]
    assert edge_grpo(rewards, row(0.4, NAN, 1.2), None).weights[0].tolist() == pytest.approx([2, 1, 2 / 3])
    many = row(*[0.0] * 15, 1.0)
    assert edge_grpo(torch.arange(16.0)[None], many, None, high=8.0).weights[0, -1] == pytest.approx(1 / 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_edge_is_the_loop(dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("edge_grpo", groups, low=0.4, high=1.5)
    for n in range(25):
        r, h, w = lists(groups, n, "rewards", "token_entropy", "where")
        weighs(outcome, n, oracles.edge_weights(h, w, 0.4, 1.5), oracles.standardised(r, w), dtype)


def test_eg_spo_by_hand():
    rewards, entropies = row(1, 0, 0, 0), row(0.1, 0.4, 0.2, 0.3)
    assert eg_spo(rewards, entropies, None).weights.tolist() == [[0.5, 1, 0.5, 1]]  # median 0.25
    assert eg_spo(rewards, entropies, None, quantile=1.0, phi=0.2).weights.tolist() == [[0.2, 1, 0.2, 0.2]]
    assert eg_spo(rewards, entropies, None, quantile=0.0).weights.tolist() == [[1, 1, 1, 1]]
    assert eg_spo(rewards, row(0.1, 0.4, 0.2, NAN), None).weights.tolist() == [[0.5, 1, 1, 1]]
    ordered = torch.arange(26.0)[None]  # 0.28 * 25 is more than 7 in floating point
    assert eg_spo(ordered, ordered, None, quantile=0.28).weights.tolist() == [[0.5] * 7 + [1.0] * 19]
    # mean 0.25, std sqrt(0.05 / 3) = 0.1290994: sigmoid(+-1.161895), sigmoid(+-0.387298)
    soft = eg_spo(rewards, entropies, None, gate="soft", phi=0.2).weights[0].tolist()
    assert soft == pytest.approx([0.2 + 0.8 * x for x in (0.2383231, 0.7616769, 0.4043679, 0.5956321)], abs=1e-6)


@pytest.mark.parametrize("gate", ["hard", "soft"])
def test_equal_entropies_gate_nothing(gate):
    for entropies in (row(0.3, 0.3, 0.3), row(0.3, 0.3 + 1e-9, 0.3), row(0.3, NAN, NAN), row(NAN, NAN, NAN)):
        assert (eg_spo(row(1, 0, 0), entropies, None, gate=gate).weights == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"quantile": 0.8, "phi": 0.1}, {"gate": "soft", "phi": 0.3}])
def test_eg_spo_is_the_loop(dtype, options):
    groups = random_groups(dtype=dtype)
    outcome = apply("eg_spo", groups, **options)
    for n in range(25):
        r, h, w = lists(groups, n, "rewards", "token_entropy", "where")
        weighs(outcome, n, oracles.eg_spo_weights(h, w, **options), oracles.standardised(r, w), dtype)


# Variance


def test_q_hawkeye_by_hand():
    rewards = torch.cat([row(1, 5, 1, 5), row(3, 3, 3, 4)])
    options = {"form": "exponential", "reward_range": (1.0, 5.0)}
    assert q_hawkeye(rewards, None, **options).weights[:, 0].tolist() == pytest.approx([0.8187308, 0.9906688], abs=1e-7)
    # variances 4 and 0.1875 of at most 4
    linear = q_hawkeye(rewards, None, reward_range=(1.0, 5.0))
    assert linear.scores["reward_variance"].tolist() == pytest.approx([1, 0.046875])
    assert linear.weights[:, 0].tolist() == pytest.approx([0.4, 1 - 0.6 * 0.046875])
    assert q_hawkeye(rewards, None, reward_range=(2.0, 4.0)).scores["reward_variance"][0] == 1.0
    assert q_hawkeye(rewards, None, alpha=2.0, reward_range=(1.0, 5.0)).weights[0, 0] == 0.0


@pytest.mark.parametrize("form, alpha", [("linear", None), ("exponential", None), ("linear", 1.5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_q_hawkeye_is_the_loop(form, alpha, dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("q_hawkeye", groups, form=form, alpha=alpha, reward_range=(-1.0, 1.5))
    strength = {"linear": 0.6, "exponential": 0.2}[form] if alpha is None else alpha
    for n in range(25):
        r, w = lists(groups, n, "rewards", "where")
        weight = oracles.variance_weight(r, w, -1.0, 1.5, form, strength)
        weighs(outcome, n, [weight] * 6, oracles.standardised(r, w), dtype)


def test_r2vpo_by_hand():
    # the variance of 1, 1.2, .8, 1 is .02
    outcome = r2vpo(row(1, 0, 0, 0), row(0.02, 0.0, NAN, INF), None)
    assert outcome.weights[0].tolist() == pytest.approx([0.9803922, 1, 1, 0], abs=1e-7)
    assert r2vpo(row(1, 0), row(0.5, 0.0), None, penalty=4.0).weights[0].tolist() == pytest.approx([1 / 3, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_r2vpo_is_the_loop(dtype):
    groups = random_groups(dtype=dtype)
    outcome = apply("r2vpo", groups, penalty=3.0)
    for n in range(25):
        r, v, w = lists(groups, n, "rewards", "ratio_variance", "where")
        enough = sum(w) >= 2
        weights = [1 / (1 + 3 * x) if enough and m and math.isfinite(x) else 1.0 for x, m in zip(v, w, strict=True)]
        weighs(outcome, n, weights, oracles.standardised(r, w), dtype)


# What is refused


@pytest.mark.parametrize(
    "name, options, message",
    [
        *[(name, {"alpha": a}, "alpha") for name in (*GCPO, "grpo_se", "seed_grpo") for a in (-0.1, NAN, INF, "0.6")],
        *[(name, {"reward_range": (1.0, 1.0)}, "reward_range") for name in (*GCPO, "q_hawkeye", "grpo_care", "egpo")],
        ("rd_only", {"alpha": None}, "alpha"),
        ("grpo_se", {"shape": "square"}, "shape has to be one of 'damp', 'reciprocal'"),
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
