"""Fixtures of the tests of maths."""

import pytest

from calibrant.text.maths.verify import Verifier


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2, timeout=60) as shared:
        yield shared
