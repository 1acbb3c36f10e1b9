"""The variance of gradients against its definition."""

import copy

import pytest
import torch
from builders_gradients import TENSORS, assert_close, make_advantages, make_batch, oracle_gradients, oracle_variance
from torch.nn import functional

from calibrant.gradients import gradient_variance


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2", "gemma3", "qwen3"])
def test_hooks_are_the_loop(models, name):
    batch, clusters = make_batch(), torch.tensor([[0, 0, 1], [7, 3, 7]])
    for dtype, relative in ((torch.float32, 1e-6), (torch.float64, 1e-10)):
        if name == "gemma3" and dtype == torch.float64:
            continue  # its attention takes a softmax in float32 whatever the model's type
        model = copy.deepcopy(models[name]).to(dtype)
        options = dict(clusters=clusters, gram=True, temperature=0.7)
        hooks = gradient_variance(model, batch, make_advantages(), rows_per_chunk=6, **options)
        loop = gradient_variance(model, batch, make_advantages(), backend="loop", **options)
        assert hooks.fallback == loop.fallback == ()
        assert hooks.where.all() and loop.where.all()
        for tensor in TENSORS:
            assert_close(getattr(hooks, tensor), getattr(loop, tensor), relative)


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_the_definition(models, name, backend):
    model, batch, advantages = copy.deepcopy(models[name]).double(), make_batch(), make_advantages()
    gradients = oracle_gradients(model, batch).unflatten(0, (2, 3))
    found = gradient_variance(model, batch, advantages, backend=backend)
    for n in range(2):
        ones = torch.ones(3, dtype=torch.float64)
        assert_close(found.variance[n], oracle_variance(gradients[n], advantages[n]), 1e-10)
        assert_close(found.score_variance[n], oracle_variance(gradients[n], ones), 1e-10)
        update = (advantages[n, :, None] * gradients[n]).mean(0)
        assert_close(found.mean_norm_squared[n], update.square().sum(), 1e-10)
    assert_close(found.squared_norms, gradients.square().sum(-1), 1e-10)
    assert found.gram is found.variance_intra is found.variance_inter is found.score_variance_intra is None


def test_options_change_the_score_as_they_say(qwen2):
    batch, advantages = make_batch(), make_advantages()
    for options in (dict(temperature=0.5), dict(mean=True), dict(temperature=2.0, mean=True)):
        gradients = oracle_gradients(qwen2, batch, **options)
        found = gradient_variance(
            qwen2,
            batch,
            advantages,
            gram=True,
            temperature=options.get("temperature", 1.0),
            reduction="mean" if options.get("mean") else "sum",
        )
        expected = torch.stack([g @ g.T for g in gradients.unflatten(0, (2, 3))])
        assert_close(found.gram, expected, 1e-10)


def test_split_between_clusters_is_the_law_of_total_variance(qwen2):
    batch, advantages = make_batch(1, 5), make_advantages(1, 5)
    gradients, clusters = oracle_gradients(qwen2, batch), torch.tensor([[4, 1, 4, 4, 1]])
    for backend in ("hooks", "loop"):
        found = gradient_variance(qwen2, batch, advantages, backend=backend, clusters=clusters)
        for weights, intra, inter, total in (
            (advantages[0], found.variance_intra, found.variance_inter, found.variance),
            (torch.ones(5), found.score_variance_intra, found.score_variance_inter, found.score_variance),
        ):
            rows = weights[:, None] * gradients
            parts = [rows[[0, 2, 3]], rows[[1, 4]]]
            within = sum(len(p) / 5 * (p - p.mean(0)).square().sum(-1).mean() for p in parts)
            between = sum(len(p) / 5 * (p.mean(0) - rows.mean(0)).square().sum() for p in parts)
            assert_close(intra[0], within, 1e-10)
            assert_close(inter[0], between, 1e-10)
            assert_close(intra + inter, total, 1e-12)
    one = gradient_variance(qwen2, batch, advantages, clusters=torch.zeros(1, 5, dtype=torch.long))
    apart = gradient_variance(qwen2, batch, advantages, clusters=torch.arange(5)[None])
    assert one.variance_inter.item() == pytest.approx(0, abs=1e-9 * one.variance.item())
    assert apart.variance_intra.item() == pytest.approx(0, abs=1e-9 * one.variance.item())
    assert one.gram is None


@pytest.mark.parametrize("backend", ["hooks", "loop"])
def test_groups_without_variance(models, backend):
    model = copy.deepcopy(models["qwen2"])
    single = gradient_variance(model, make_batch(2, 1), torch.ones(2, 1), backend=backend)
    assert single.variance.tolist() == single.score_variance.tolist() == [0.0, 0.0]
    assert (single.squared_norms > 0).all()
    batch = {key: rows[:1].repeat(4, 1) for key, rows in make_batch(1, 1).items()}
    same = gradient_variance(model, batch, torch.ones(1, 4), backend=backend)
    scale = same.squared_norms[0, 0].item()
    assert max(same.variance.item(), same.score_variance.item()) <= 1e-11 * scale
    assert same.mean_norm_squared.item() == pytest.approx(scale, rel=1e-6)
    none = gradient_variance(model, make_batch(), torch.zeros(2, 3), backend=backend)
    assert none.variance.tolist() == none.mean_norm_squared.tolist() == [0.0, 0.0]
    assert (none.score_variance > 0).all()


def test_a_small_variance_beside_long_gradients_keeps_its_digits(qwen2):
    # Rollouts that differ by little: the identity of V subtracts numbers that agree in most digits.
    batch = {key: rows[:1].repeat(3, 1) for key, rows in make_batch(1, 1).items()}
    advantages = torch.tensor([[1.0, 1.0 + 1e-5, 1.0 - 1e-5]], dtype=torch.float64)
    model = copy.deepcopy(qwen2).float()
    found = gradient_variance(model, batch, advantages)
    norm = gradient_variance(qwen2, batch, advantages).squared_norms[0, 0].item()
    assert found.variance.item() == pytest.approx(norm * 2e-10 / 3, rel=1e-4)


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2"])
def test_padding_does_not_matter(models, name):
    model, batch, advantages = copy.deepcopy(models[name]).double(), make_batch(), make_advantages()
    pad = {key: functional.pad(rows, (3, 0) if "prompt" in key else (0, 4)) for key, rows in batch.items()}
    with_ids = pad | {"completion_ids": torch.where(pad["completion_mask"] > 0, pad["completion_ids"], 17)}
    expected = gradient_variance(model, batch, advantages, gram=True)
    for other in (pad, with_ids):
        for rows in (None, 1, 6, 100):
            found = gradient_variance(model, other, advantages, gram=True, rows_per_chunk=rows)
            assert_close(found.gram, expected.gram, 1e-11)


def test_rows_or_groups_of_rows(qwen2):
    batch, advantages = make_batch(), make_advantages()
    grouped = {key: rows.unflatten(0, (2, 3)) for key, rows in batch.items()}
    flat, split = gradient_variance(qwen2, batch, advantages), gradient_variance(qwen2, grouped, advantages)
    assert flat.variance.equal(split.variance)


def test_groups_stand_alone(qwen2):
    batch, advantages = make_batch(3, 2), make_advantages(3, 2)
    together = gradient_variance(qwen2, batch, advantages, rows_per_chunk=6)
    for n in range(3):
        alone = gradient_variance(
            qwen2, {key: rows[2 * n : 2 * n + 2] for key, rows in batch.items()}, advantages[n : n + 1]
        )
        assert_close(together.variance[n : n + 1], alone.variance, 1e-11)
