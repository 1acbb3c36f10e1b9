"""Methods with a weight or an advantage per token, beside verl's formulas and the loops of oracles."""

import math

import oracles
import pytest
import torch
from made_up import NAN, lists, random_groups, row

from calibrant.advantages import standardised
from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import apply, clip_cov, eg_spo, gtpo, kl_cov
from calibrant.methods.inputs import TOKEN_INPUTS

TWO = row(1, 0)
LOGPROBS = torch.tensor([[[-0.1, -9.0], [-3.0, NAN]]], dtype=torch.float64)


def whole(seed=0, width=6):
    """Groups whose rollouts all count, with random lengths, and the mask of their tokens."""
    groups = random_groups(5, 4, seed=seed, nan=0.0)
    groups.inputs["where"][:] = True
    groups.inputs["total_rewards"] = groups.rewards
    return groups, torch.isfinite(groups.inputs["token_logprobs"])


def verl_covariance(advantages, log_prob, response_mask):
    """`cov_all` of verl's compute_policy_loss_clip_cov and _kl_cov (core_algos.py, 0.10.0.dev @1dda039)."""

    def masked_mean(x):
        return (x * response_mask).sum() / response_mask.sum()

    return (advantages - masked_mean(advantages)) * (log_prob - masked_mean(log_prob))


def test_covariances_are_those_of_verl():
    groups, mask = whole()
    advantages = standardised(groups.rewards)[..., None].expand(mask.shape)
    logprobs = groups.inputs["token_logprobs"].nan_to_num(0.0)
    expected = torch.where(mask, verl_covariance(advantages, logprobs, mask.double()), 0.0)
    for name in ("clip_cov", "kl_cov"):
        more = {"token_log_ratios": torch.zeros_like(logprobs)}
        found = apply(name, Groups(groups.rewards, groups.inputs | more)).scores["covariance"]
        torch.testing.assert_close(found, expected.sum(-1) / mask.sum(-1))


def test_clip_cov_by_hand():
    # A = 0.707 -0.707, mean over the three tokens 0.2357; l = -0.1 -9 -3, mean -4.0333
    outcome = clip_cov(TWO, LOGPROBS, None)
    a = 1 / math.sqrt(2) / (1 + 1e-4 * math.sqrt(2))
    cov = [(a - a / 3) * (-0.1 + 12.1 / 3), (a - a / 3) * (-9 + 12.1 / 3), (-a - a / 3) * (-3 + 12.1 / 3)]
    assert outcome.scores["covariance"][0].tolist() == pytest.approx([(cov[0] + cov[1]) / 2, cov[2]])
    assert cov == pytest.approx([1.8540, -2.3411, -0.9741], abs=1e-3)
    assert outcome.weights.tolist() == [[[0, 1], [1, 1]]]  # the only one between 1 and 5
    assert outcome.scores["clipped_share"].tolist() == [[0.5, 0.0]]
    assert (clip_cov(TWO, LOGPROBS, None, high=1.5).weights == 1).all()
    assert (clip_cov(TWO, LOGPROBS, None, share=0.0).weights == 1).all()


def test_clip_cov_draws_so_many_anew_in_each_batch():
    groups, mask = whole()
    options = {"share": 0.1, "low": -10.0, "high": 10.0}
    first = apply("clip_cov", groups, **options)
    assert (first.weights == 0).sum() == int(0.1 * mask.sum()) and not (first.weights == 0)[~mask].any()
    assert torch.equal(first.weights, apply("clip_cov", groups, **options).weights)
    second = apply("clip_cov", groups, first.state, **options)
    assert second.state["step"] == 2 and not torch.equal(first.weights, second.weights)
    assert not torch.equal(first.weights, apply("clip_cov", groups, seed=1, **options).weights)
    before = torch.random.get_rng_state()
    apply("clip_cov", groups, **options)
    assert torch.equal(before, torch.random.get_rng_state())


def test_kl_cov_has_the_gradient_of_verls_loss():
    groups, mask = whole(3)
    ratios = groups.inputs["token_log_ratios"].nan_to_num(0.0)
    old = groups.inputs["token_logprobs"].nan_to_num(0.0)
    log_prob = (old + ratios).requires_grad_()
    advantages = standardised(groups.rewards)[..., None].expand(mask.shape)
    # compute_policy_loss_kl_cov of verl (core_algos.py, 0.10.0.dev @1dda039), summed over tokens
    pg_losses = -advantages * torch.exp(log_prob - old)
    pg_losses_kl = pg_losses + 0.7 * (log_prob - old).abs()
    cov = torch.where(mask, verl_covariance(advantages, log_prob.detach(), mask.double()), -torch.inf).flatten()
    large = cov.topk(max(1, int(mask.sum() * 0.1))).indices
    chosen = torch.zeros(mask.numel(), dtype=torch.bool).index_fill(0, large, True).view_as(mask)
    torch.where(chosen, pg_losses_kl, pg_losses)[mask].sum().backward()
    outcome = apply("kl_cov", groups, share=0.1, coefficient=0.7)
    assert torch.equal(outcome.scores["held_share"] > 0, chosen.any(-1))
    found = -outcome.advantages * torch.exp(ratios)  # the gradient of -A rho with respect to log pi
    torch.testing.assert_close(found[mask], log_prob.grad[mask])


def test_kl_cov_is_plain_at_the_first_update():
    groups, _ = whole()
    groups.inputs["token_log_ratios"] = torch.zeros_like(groups.inputs["token_log_ratios"])
    plain = standardised(groups.rewards)[..., None]
    assert torch.equal(
        apply("kl_cov", groups, share=0.5).advantages, plain.expand(groups.inputs["token_logprobs"].shape)
    )
    assert (kl_cov(TWO, LOGPROBS, None).weights == 1).all()


def test_gtpo_by_hand():
    # two right rollouts with entropies 1 3 | 2 -, one wrong with 1 4: shares at position 0: 2/3 4/3 | 1, at 1: 1 | 1
    entropies = torch.tensor([[[1.0, 3.0], [2.0, NAN], [1.0, 4.0]]], dtype=torch.float64)
    weights = gtpo(row(2, 2, 0), entropies, None, alpha=0.3, form="weight").weights
    assert weights[0].tolist() == [pytest.approx([0.9, 1.0]), pytest.approx([1.1, 1.0]), pytest.approx([1.0, 1.0])]
    own = gtpo(row(2, 2, 0), entropies, None, alpha=0.3)
    # token rewards of right ones 1.2 1.3 | 1.4, mean 1.3, std 0.1; of the wrong one -1.3 -1.3
    assert own.base[0].tolist() == [
        pytest.approx([-0.1 / 0.1001, 0.0]), pytest.approx([0.1 / 0.1001, 0.0]), [0.0, 0.0]
    ]  # fmt: skip
    joint = gtpo(row(2, 2, 0), entropies, None, alpha=0.3, normalise="joint").base
    # of 1.2 1.3 1.4 -1.3 -1.3: mean 0.26, std 1.4258
    assert joint[0, 0, 0].item() == pytest.approx(0.94 / 1.4259, rel=1e-3)
    assert (joint[0, :2, 0] > 0).all() and (joint[0, 2] < 0).all()


def test_of_wrong_rollouts_the_certain_tokens_count_most():
    entropies = torch.tensor([[[1.0], [3.0], [1.0]]], dtype=torch.float64)
    weights = gtpo(row(0, 0, 2), entropies, None, alpha=1.0, form="weight").weights
    assert weights[0, :, 0].tolist() == pytest.approx([1.5, 0.5, 1.0])  # 1 and 1/3 of 4/3, times two


@pytest.mark.parametrize("normalise", ["separate", "joint"])
def test_gtpo_is_the_loop(normalise):
    groups = random_groups(30)
    outcome = apply("gtpo", groups, alpha=0.4, normalise=normalise)
    weighted = apply("gtpo", groups, alpha=0.4, form="weight").weights
    for n in range(30):
        (right,) = lists(groups, n, "correct")
        right = [x if m else NAN for x, m in zip(right, groups.where[n].tolist(), strict=True)]
        entropies = groups.inputs["token_entropies"][n].tolist()
        enough = groups.where[n].sum() >= 2
        expected = oracles.gtpo_advantages(entropies, right, 0.4, normalise)
        shares = oracles.gtpo_shares(entropies, right)
        for i in range(6):
            assert outcome.advantages[n, i].tolist() == pytest.approx(expected[i] if enough else [0] * 7, abs=1e-9)
            wanted = [1 + 0.4 * (s - 1) if s is not None and enough else 1.0 for s in shares[i]]
            assert weighted[n, i].tolist() == pytest.approx(wanted)


def test_tokens_of_low_entropy_are_attenuated():
    entropies = torch.tensor([[[0.1, 2.0, 0.2], [1.0, 0.3, NAN]]], dtype=torch.float64)  # the 0.5 quantile is 0.3
    outcome = eg_spo(TWO, None, None, entropies, level="token", quantile=0.5, phi=0.25)
    assert outcome.weights.tolist() == [[[0.25, 1, 0.25], [1, 1, 1]]]
    assert outcome.scores["gated_share"][0].tolist() == pytest.approx([2 / 3, 0])
    assert (eg_spo(TWO, None, None, torch.full((1, 2, 3), 0.7), level="token").weights == 1).all()
    default = eg_spo(TWO, None, None, entropies, level="token").weights  # the 0.8 quantile is 1.2
    assert default.tolist() == [[[0.5, 1, 0.5], [0.5, 0.5, 1]]]
    with pytest.raises(CalibrantError, match=r"eg_spo needs the input 'token_entropies'.*for level='token'"):
        eg_spo(TWO, row(1, 2), None, level="token")
    with pytest.raises(CalibrantError, match="eg_spo needs the input 'token_entropy'"):
        eg_spo(TWO, None, None)


def test_weights_of_tokens_multiply_the_base_of_the_trainer():
    groups, mask = whole()
    bases = {"standardised": torch.full_like(groups.rewards, 3.0)}
    options = {"share": 0.1, "low": -10.0, "high": 10.0}
    outcome = apply("clip_cov", groups, bases=bases, **options)
    assert torch.equal(outcome.advantages, 3.0 * outcome.weights)
    held = apply("kl_cov", groups, share=0.1, bases=bases).advantages
    assert (held == 3.0).sum() == held.numel() - int(0.1 * mask.sum())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip_cov", {"low": 5.0, "high": 1.0}, "low has to be below high"),
        ("clip_cov", {"share": 2.0}, r"share has to be a number in \[0, 1\]"),
        ("kl_cov", {"coefficient": -1.0}, "coefficient has to be"),
        ("gtpo", {"form": "token"}, "form has to be one of"),
        ("gtpo", {"form": "weight", "alpha": 2.0}, "alpha has to be a number in"),
        ("eg_spo", {"level": "tokens"}, "level has to be one of"),
    ],
)
def test_options_out_of_their_range_are_refused(name, options, message):
    with pytest.raises(CalibrantError, match=f"{name}: {message}"):
        apply(name, random_groups(), **options)


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov", "gtpo"])
def test_inputs_of_another_shape_are_refused(name):
    groups = random_groups()
    flat = {k: x[..., 0] if k in TOKEN_INPUTS else x for k, x in groups.inputs.items()}
    with pytest.raises(CalibrantError, match="2 axes instead of 3"):
        apply(name, Groups(groups.rewards, flat))
