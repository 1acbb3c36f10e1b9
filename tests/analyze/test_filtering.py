"""What is left of variance and gradients where uncertain groups are left out."""

import pytest
import torch

from calibrant.analyze.filtering import LEVELS, filtering
from calibrant.report.analysis_weights import filter_section


def by_hand(u, values, level):
    """Equation 6 as it is written: the mean over the groups with `u <= tau`, in units of that over all."""
    ordered = sorted(u)
    tau = ordered[max(0, round(len(u) * (level + 1) / LEVELS) - 1)]
    kept = [value for signal, value in zip(u, values, strict=True) if signal <= tau]
    return len(kept) / len(u), (sum(kept) / len(kept)) / (sum(values) / len(values))


@pytest.mark.parametrize("count", [3, 10, 57])
@pytest.mark.parametrize("ties", [False, True])
def test_as_the_equations_have_it(count, ties):
    generator = torch.Generator().manual_seed(count)
    signal, variance, norm = torch.rand(3, count, generator=generator).double()
    signal = (3 * signal).floor() if ties else signal
    found = filtering(["token_entropy"], signal[None], variance, norm)
    curve = found["curves"]["token_entropy"]
    assert found["groups"] == count and len(curve["share"]) == LEVELS
    for level in range(LEVELS):
        share, kept = by_hand(signal.tolist(), variance.tolist(), level)
        assert curve["share"][level] == pytest.approx(share) and curve["variance"][level] == pytest.approx(kept)
        assert curve["squared_norm"][level] == pytest.approx(by_hand(signal.tolist(), norm.tolist(), level)[1])
    assert curve["share"][-1] == curve["variance"][-1] == pytest.approx(1.0)


def test_a_filter_by_the_variance_removes_it_and_one_at_random_does_not():
    generator = torch.Generator().manual_seed(0)
    variance, other = torch.rand(2, 4000, generator=generator).double()
    curves = filtering(["a", "b"], torch.stack([variance, other]), variance, variance)["curves"]
    assert curves["a"]["variance"][4] == pytest.approx(0.5, abs=0.02)
    assert curves["b"]["variance"][4] == pytest.approx(1.0, abs=0.03)


def test_groups_without_values():
    nan = torch.nan
    signals = torch.tensor([[1.0, 2.0, nan, 3.0], [nan] * 4]).double()
    variance = torch.tensor([1.0, 3.0, 5.0, nan]).double()
    found = filtering(["a", "b"], signals, variance, variance)
    assert found["groups"] == 3 and set(found["curves"]) == {"a"}
    assert found["curves"]["a"]["variance"] == pytest.approx([0.5] * 7 + [1.0] * 3)
    nothing = filtering(["a"], signals[:1], torch.zeros(4).double(), variance)
    assert nothing is None and filter_section({"filtering": None}).missing == ["No group has a gradient."]
