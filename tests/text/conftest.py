"""Fixtures of the tests of text."""

import pytest
from builders_entail import save

from calibrant.text.entail import EntailmentJudge


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("nli"))


@pytest.fixture
def judge(folder):
    return EntailmentJudge(folder, device="cpu")
