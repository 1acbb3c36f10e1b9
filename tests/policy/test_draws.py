"""Draws are those of torch.multinomial: tokens, and the state of the generator afterwards."""

import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.policy import draws


def twice(way, *arguments):
    torch.manual_seed(7)
    return [way(*arguments), torch.rand(1)]


@pytest.mark.parametrize("shape", [(1, 2), (5, 1000), (37, 20_000), (3, 600_000)])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_the_tokens_of_multinomial(shape, spread):
    scores = spread * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if spread == 1.0:
        scores[:, 0] = -torch.inf  # as top k leaves most of them
    (tokens, after), (expected, other) = twice(draws.sampled, scores), twice(torch.multinomial, scores.softmax(-1), 1)
    assert torch.equal(tokens, expected[:, 0]) and torch.equal(after, other)
    assert draws._same_as_multinomial()


def test_another_multinomial_of_torch_is_used_itself(monkeypatch):
    monkeypatch.setattr(draws, "draw", lambda p: torch.zeros(len(p), dtype=torch.long))
    draws._same_as_multinomial.cache_clear()
    assert not draws._same_as_multinomial()
    scores = torch.randn(5, 1000)
    assert torch.equal(twice(draws.sampled, scores)[0], twice(torch.multinomial, scores.softmax(-1), 1)[0][:, 0])
    draws._same_as_multinomial.cache_clear()


def test_the_check_leaves_the_generator_alone():
    draws._same_as_multinomial.cache_clear()
    torch.manual_seed(7)
    draws._same_as_multinomial()
    assert torch.equal(torch.rand(1), twice(lambda: None)[1])


def test_logits_that_are_not_finite():
    with pytest.raises(CalibrantError, match="diverged"):
        draws.sampled(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]))
