"""The method that is recommended, and those beside it."""

import itertools

import pytest

from calibrant.analyze.recommendation import ROUTES, chosen_method
from calibrant.methods import METHODS


@pytest.mark.parametrize("signals", itertools.combinations(ROUTES, 2), ids="-".join)
def test_a_method_is_never_beside_itself(signals):
    """Two signals that the data do not tell apart, and the methods that read them."""
    rows = {name: {"rho": rho, "low": 0.3, "high": 0.7} for name, rho in zip(signals, (0.5, 0.45), strict=True)}
    undecided = {a: {b: (0.05, -0.1, 0.2, 0.3) for b in signals if b != a} for a in signals}
    method = chosen_method({"name": signals[0]}, {"rows": rows, "differences": undecided}, METHODS)
    first, second = (ROUTES[name].method for name in signals)
    assert method["name"] == first
    assert method["beside"] == ([second] if second != first else [])
