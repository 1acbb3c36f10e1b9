"""Layers without a rule."""

import pytest
import torch
from builders_gradients import TOTALS, VOCABULARY, Odd, assert_close, make_advantages, make_batch
from torch import nn

from calibrant.errors import CalibrantError
from calibrant.gradients import gradient_variance
from calibrant.gradients.model import batch_rows, passes

TRAPS = {
    "twice": {"scale", "second.weight", "second.bias"},
    "function": {"scale", "second.weight"},
    "unseen": {"scale", "second.weight", "second.bias"},
    "flat": {"scale", "second.weight", "second.bias"},
    "result unused": {"scale", "second.weight", "second.bias"},
    "one token": {"scale", "second.weight", "second.bias"},
    "time first": {"scale", "second.weight", "second.bias"},
    "none": {"scale"},
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_has_no_rule_falls_back_and_is_named(trap):
    torch.manual_seed(0)
    model, batch, advantages = Odd(trap).double(), make_batch(), make_advantages()
    batch = {k: torch.ones_like(v) if k == "prompt_mask" else v for k, v in batch.items()}  # it takes no positions
    exact = gradient_variance(model, batch, advantages, backend="loop", gram=True)
    sums = gradient_variance(model, batch, advantages, rows_per_chunk=6)
    products = gradient_variance(model, batch, advantages, gram=True)
    assert TRAPS[trap] <= set(sums.fallback) == set(products.fallback)
    assert "first.weight" not in sums.fallback and "head.weight" not in sums.fallback
    assert_close(products.gram, exact.gram, 1e-10)
    for name in TOTALS:
        assert_close(getattr(sums, name), getattr(exact, name), 1e-10)


def test_a_weight_that_two_linear_layers_share_falls_back():
    torch.manual_seed(0)
    model, batch, advantages = Odd("none").double(), make_batch(), make_advantages()
    model.second.weight = model.first.weight
    found = gradient_variance(model, batch, advantages)
    assert set(found.fallback) == {"first.weight", "scale"}
    assert_close(found.variance, gradient_variance(model, batch, advantages, backend="loop").variance, 1e-10)


def test_a_row_on_its_own_has_no_padding():
    rows = batch_rows(make_batch(), make_advantages())
    assert not rows.attended.all()
    assert all(rows.part(slice(i, i + 1)).attended.all() for i in range(6))


def test_as_many_groups_a_pass_as_rows_allow(qwen2):
    def parts(*sizes):
        return [(part.start, part.stop) for part in passes(*sizes)]

    assert parts(5, 4, None) == parts(5, 4, 1) == parts(5, 4, 7) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert parts(5, 4, 8) == parts(5, 4, 11) == [(0, 2), (2, 4), (4, 5)]
    seen, batch = [], make_batch()
    qwen2.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:2]))
    gradient_variance(qwen2, batch, make_advantages(), rows_per_chunk=6)
    prompts, completions = batch["prompt_mask"].sum(-1), batch["completion_mask"].sum(-1)
    longest = int((prompts + completions).max())
    assert seen[-1] == (6, longest - int(prompts.min()) + 1)  # no logits of the shortest prompt but its last


def test_a_layer_that_is_called_again_in_long_texts_is_noticed():
    class Sometimes(Odd):
        def forward(self, input_ids, attention_mask):
            if input_ids.shape[1] > 3:
                self.first(self.embed.weight)
            return super().forward(input_ids, attention_mask)

    with pytest.raises(CalibrantError, match=r"a Linear is called twice .* use backend='loop'"):
        gradient_variance(Sometimes("none"), make_batch(), make_advantages())


class Mixing(nn.Module):
    """Has one weight of the width of its input, as a normalisation does, but is none."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return x * self.weight.flip(0) if x.shape[-1] == 8 else x


def test_what_only_looks_like_a_normalisation_falls_back():
    torch.manual_seed(0)
    model, batch, advantages = Odd("none").double(), make_batch(), make_advantages()
    model.norm = Mixing().double()
    found = gradient_variance(model, batch, advantages)
    assert "norm.weight" in found.fallback
    assert_close(found.variance, gradient_variance(model, batch, advantages, backend="loop").variance, 1e-10)


class Rotated(nn.Embedding):
    """Says that it scales its rows, but does something else."""

    embed_scale = 2.0

    def forward(self, ids):
        return 2 * super().forward(ids).roll(1, -1)


def test_an_embedding_that_only_says_that_it_scales_falls_back():
    torch.manual_seed(0)
    model, batch, advantages = Odd("none").double(), make_batch(), make_advantages()
    model.embed = Rotated(VOCABULARY, 8).double()
    assert "embed.weight" in gradient_variance(model, batch, advantages).fallback


@pytest.mark.parametrize("option", [dict(scale_grad_by_freq=True), dict(max_norm=1.0)])
def test_embeddings_that_change_their_gradient_fall_back(option):
    torch.manual_seed(0)
    model, batch, advantages = Odd("none").double(), make_batch(), make_advantages()
    model.embed = nn.Embedding(VOCABULARY, 8, **option).double()
    batch["completion_ids"][:, :3] = 7  # a token that comes often
    found = gradient_variance(model, batch, advantages)
    assert "embed.weight" in found.fallback
    assert_close(found.variance, gradient_variance(model, batch, advantages, backend="loop").variance, 1e-10)
