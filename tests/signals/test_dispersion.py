import math

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.errors import CalibrantError
from calibrant.signals import barycentric_transport, cosine_dispersion, reward_dispersion

NAN, INF = math.nan, math.inf
FOUR = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]], dtype=torch.float64)
SHAPES = [(12, 2, 3), (8, 5, 4), (5, 16, 24), (6, 3, 1)]


def both(embeddings, clusters, where=None):
    return cosine_dispersion(embeddings, where), barycentric_transport(embeddings, clusters, where)


def random_groups(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    clusters = torch.randint(-3, 4, shape[:2], generator=generator)
    where = torch.rand(shape[:2], generator=generator) > 0.3
    return embeddings, clusters, where


def test_the_vector_of_four():
    # distances: 1-3, 2-3: 1; 1-4, 2-4: 0.4; 3-4: 0.2; twice (2 + 0.8 + 0.2) / 16 = 0.375
    assert cosine_dispersion(FOUR).item() == pytest.approx(0.375, abs=1e-15)
    # clusters {1, 2} and {3, 4}: mu_1 = (1, 0), mu_2 = (0.6, 1.8) / sqrt(3.6) = (0.3162278, 0.9486833)
    # b = (0.6581139, 0.4743416), ||b|| = 0.8112422, (1 - ||b||) / 2 = 0.0943789
    found = barycentric_transport(FOUR, torch.tensor([[0, 0, 1, 1]])).item()
    assert found == pytest.approx(0.0943789, abs=1e-7)
    # mean 0.75: (1.25 + 0.75 + 0.75 + 0.25) / (2/4 * 2 * 2 * 2) = 3 / 4
    rewards = torch.tensor([[2.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert reward_dispersion(rewards, (0.0, 2.0)).item() == 0.75


def test_orthogonal_answers_reach_the_largest_cosine_dispersion():
    # G = 4 unit vectors: 12 of 16 pairs at distance 1
    assert cosine_dispersion(torch.eye(4)[None]).item() == 0.75


def test_opposite_answers_count_as_distance_one_not_two():
    # 2 of 4 pairs, each clipped to 1
    assert cosine_dispersion(torch.tensor([[[1.0], [-1.0]]])).item() == 0.5


def test_opposite_clusters_cost_a_half():
    embeddings = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert barycentric_transport(embeddings, torch.tensor([[0, 1]])).item() == 0.5


def test_a_cluster_that_cancels_costs_a_half():
    # clusters {(1,0), (-1,0)} without direction and {(0,1)}: b = (0, 1/3), (1 - 1/3) / 2 = 1/3
    embeddings = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    assert barycentric_transport(embeddings, torch.tensor([[0, 0, 1]])).item() == pytest.approx(1 / 3, abs=1e-15)
    # three directions at 120 degrees in float32 cancel up to rounding
    angles = torch.arange(3) * 2 * math.pi / 3
    star = torch.stack([angles.cos(), angles.sin()], -1)[None]
    assert barycentric_transport(star, torch.tensor([[0, 0, 0]])).item() == 0.5


def test_one_meaning_has_no_dispersion_to_the_bit():
    for dtype in (torch.float32, torch.float64, torch.float16):
        rows = torch.randn(40, 1, 384, generator=torch.Generator().manual_seed(0)).to(dtype)
        embeddings = rows.expand(40, 7, 384)
        for clusters in (torch.zeros(40, 7).long(), torch.arange(7).expand(40, 7), torch.arange(7).expand(40, 7) % 3):
            cd, bot = both(embeddings, clusters)
            assert cd.tolist() == [0.0] * 40 and bot.tolist() == [0.0] * 40


def test_what_varies_inside_a_cluster_does_not_count_for_transport():
    embeddings, _, _ = random_groups((4, 6, 8))
    assert barycentric_transport(embeddings, torch.full((4, 6), 9)).tolist() == [0.0] * 4
    assert (cosine_dispersion(embeddings) > 0.3).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_batched_is_the_loop(shape, dtype):
    embeddings, clusters, where = random_groups(shape, dtype, seed=sum(shape))
    cd, bot = both(embeddings, clusters, where)
    assert cd.dtype == bot.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1.01 * torch.finfo(dtype).eps
    for n in range(shape[0]):
        e, c, w = embeddings[n].tolist(), clusters[n].tolist(), where[n].tolist()
        assert cd[n].item() == pytest.approx(oracles.cosine_dispersion(e, w), rel=tolerance, abs=tolerance)
        assert bot[n].item() == pytest.approx(oracles.barycentric_transport(e, c, w), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_reward_dispersion_is_the_loop(size, dtype):
    generator = torch.Generator().manual_seed(size)
    rewards = (torch.rand(30, size, generator=generator, dtype=torch.float64) * 3 - 0.5).to(dtype)
    rewards[torch.rand(30, size, generator=generator) < 0.2] = NAN
    where = torch.rand(30, size, generator=generator) > 0.2
    found = reward_dispersion(rewards, (-0.5, 1.5), where)
    expected = [
        oracles.reward_dispersion(r, w, -0.5, 1.5) for r, w in zip(rewards.tolist(), where.tolist(), strict=True)
    ]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-3)
    if dtype == torch.float64:
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_masked_is_dropped(shape):
    embeddings, clusters, where = random_groups(shape, seed=7)
    rewards = torch.rand(shape[:2], dtype=torch.float64)
    garbage = torch.tensor([NAN, INF, 1e300] * 8, dtype=torch.float64)[: shape[2]]
    hidden = torch.where(where[..., None], embeddings, garbage)
    cd, bot = both(hidden, torch.where(where, clusters, clusters[:, :1]), where)
    rd = reward_dispersion(torch.where(where, rewards, -INF), (0.0, 1.0), where)
    for n in range(shape[0]):
        keep = where[n]
        if keep.any():
            alone = both(embeddings[n : n + 1, keep], clusters[n : n + 1, keep])
            torch.testing.assert_close((cd[n], bot[n]), (alone[0][0], alone[1][0]), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(rd[n], reward_dispersion(rewards[n : n + 1, keep], (0.0, 1.0))[0])
        else:
            assert (cd[n], bot[n], rd[n]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_identities_with_the_mean_direction(shape):
    embeddings = random_groups(shape)[0].abs()  # no cosine is negative
    singletons = torch.arange(shape[1]).expand(shape[:2])
    resultant = torch.nn.functional.normalize(embeddings, dim=-1).mean(1).norm(dim=-1)
    cd, bot = both(embeddings, singletons)
    torch.testing.assert_close(cd, 1 - resultant**2, rtol=0, atol=1e-12)
    torch.testing.assert_close(bot, (1 - resultant) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_binary_rewards_give_four_p_one_minus_p(size):
    rewards = torch.tril(torch.ones(size + 1, size, dtype=torch.float64), -1) * 2.0  # 0 to G correct
    p = torch.arange(size + 1, dtype=torch.float64) / size
    torch.testing.assert_close(reward_dispersion(rewards, (0.0, 2.0)), 4 * p * (1 - p), rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_the_largest_reward_dispersion_is_one(size):
    # by brute force over all corners of the range, where a convex function is largest
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 3.0], dtype=torch.float64)] * size)
    assert reward_dispersion(corners, (-1.0, 3.0)).max().item() == pytest.approx(1.0, abs=1e-14)
    unclipped = (corners - corners.mean(1, keepdim=True)).abs().sum(1).max().item()
    assert unclipped == pytest.approx(2 / size * (size // 2) * ((size + 1) // 2) * 4.0)


def test_reward_dispersion_out_of_range_is_clipped_and_equal_rewards_give_zero():
    assert reward_dispersion(torch.tensor([[0.0, 10.0]]), (0.0, 1.0)).item() == 1.0
    assert reward_dispersion(torch.full((1, 7), 0.3), (0.0, 1.0)).item() == 0.0
    assert reward_dispersion(torch.full((1, 8), 0.3), (0.0, 1.0)).item() == 0.0


def test_reward_dispersion_needs_two_scorable_rollouts():
    rewards = torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, 1.0]])
    assert reward_dispersion(rewards, (0.0, 1.0)).tolist() == [0.0, 0.0, 1.0]


def test_length_of_embeddings_and_names_of_clusters_do_not_matter():
    embeddings, clusters, where = random_groups((6, 7, 5))
    scaled = embeddings * (torch.rand(6, 7, 1).double() + 0.1) * 1e30
    renamed = torch.tensor([5, -(2**62), 0, 99, 2**62, -1, 7])[clusters + 3]
    torch.testing.assert_close(both(scaled, renamed, where), both(embeddings, clusters, where), rtol=1e-12, atol=1e-12)


def test_order_of_rollouts_does_not_matter():
    embeddings, clusters, where = random_groups((6, 7, 5))
    order = torch.randperm(7)
    torch.testing.assert_close(
        both(embeddings[:, order], clusters[:, order], where[:, order]),
        both(embeddings, clusters, where),
        rtol=1e-12,
        atol=1e-12,
    )


def test_rotation_does_not_matter():
    embeddings, clusters, where = random_groups((6, 7, 5))
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    torch.testing.assert_close(
        both(embeddings @ rotation, clusters, where), both(embeddings, clusters, where), rtol=1e-10, atol=1e-10
    )


def test_leading_axes_no_prompts_and_one_rollout():
    embeddings, clusters, where = random_groups((6, 7, 5))
    flat = both(embeddings, clusters, where)
    nested = both(embeddings.reshape(2, 3, 7, 5), clusters.reshape(2, 3, 7), where.reshape(2, 3, 7))
    assert torch.equal(nested[0].flatten(), flat[0]) and torch.equal(nested[1].flatten(), flat[1])
    assert [x.shape for x in both(torch.zeros(0, 4, 3), torch.zeros(0, 4).long())] == [(0,), (0,)]
    assert [x.tolist() for x in both(torch.randn(2, 1, 3), torch.zeros(2, 1).long())] == [[0.0, 0.0]] * 2


def test_vectors_without_direction_are_unlike_everything():
    # one zero vector beside two equal ones: 4 of 9 pairs at distance 1
    embeddings = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    assert cosine_dispersion(embeddings).item() == pytest.approx(4 / 9)
    # its own cluster has mass 1/3 and costs 1/2; the barycentre is (2/3, 0): (1 - 2/3) / 2
    assert barycentric_transport(embeddings, torch.tensor([[0, 1, 1]])).item() == pytest.approx(1 / 6)
    for bad in (NAN, INF, -INF, 1e-120, 1e-200, 1e200):
        embeddings[0, 0] = torch.tensor([bad, bad], dtype=torch.float64)
        assert cosine_dispersion(embeddings).item() == pytest.approx(4 / 9)
    # only zero vectors: G (G - 1) / G^2 and 1/2
    cd, bot = both(torch.zeros(1, 4, 3), torch.zeros(1, 4).long())
    assert (cd.item(), bot.item()) == (0.75, 0.5)
    # but one rollout alone disagrees with nobody
    assert [x.item() for x in both(torch.zeros(1, 1, 3), torch.zeros(1, 1).long())] == [0.0, 0.0]


def test_nothing_is_differentiated_or_changed():
    embeddings, clusters, where = random_groups((3, 4, 5))
    before = embeddings.clone()
    cd, bot = both(embeddings.requires_grad_(), clusters, where)
    assert not cd.requires_grad and not bot.requires_grad
    assert torch.equal(embeddings.detach(), before)


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 0.9]))
def test_ranges_hold_under_any_damage(size, width, seed, damage):
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, 1.0, -1.0, NAN, INF, -INF, 1e300, 1e-300], dtype=torch.float64)
    noise = values[torch.randint(len(values), (5, size, width), generator=generator)]
    clean = torch.randn(5, size, width, generator=generator, dtype=torch.float64)
    embeddings = torch.where(torch.rand(5, size, width, generator=generator) < damage, noise, clean)
    clusters = torch.randint(0, 3, (5, size), generator=generator)
    where = torch.rand(5, size, generator=generator) > 0.3
    for mask in (None, where):
        cd, bot = both(embeddings, clusters, mask)
        rd = reward_dispersion(embeddings[..., 0], (0.0, 1.0), mask)
        for score, top in ((cd, 1.0), (bot, 0.5), (rd, 1.0)):
            assert ((score >= 0) & (score <= top)).all()


def test_shapes_are_shown():
    with pytest.raises(CalibrantError) as caught:
        barycentric_transport(torch.zeros(3, 4, 8), torch.zeros(3, 5).long())
    message = str(caught.value)
    assert "embeddings [..., N, G, D]" in message and "[3, 4, 8]" in message and "[3, 5]" in message
    with pytest.raises(CalibrantError, match=r"N, G, D.*\[4, 8\]"):
        cosine_dispersion(torch.zeros(4, 8))
    with pytest.raises(CalibrantError, match="D is 0"):
        cosine_dispersion(torch.zeros(2, 4, 0))
    with pytest.raises(CalibrantError, match="integers"):
        barycentric_transport(torch.zeros(3, 4, 8), torch.zeros(3, 4))


@pytest.mark.parametrize("bad", [(1.0, 1.0), (2.0, 0.0), (0.0, NAN), (0.0, INF), None, (0.0, 1.0, 2.0)])
def test_an_empty_range_is_refused(bad):
    with pytest.raises(CalibrantError, match="reward_dispersion: reward_range"):
        reward_dispersion(torch.zeros(2, 4), bad)
