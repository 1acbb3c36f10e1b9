"""Fixtures of the tests of analyze."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from builders_analyze import SMALL

from calibrant.analyze.collect import measure_context
from calibrant.analyze.parameters import measured_parameters
from calibrant.analyze.settings import AnalyzeSettings
from calibrant.cli.main import main
from calibrant.policy.models import load_policy, load_tokenizer
from calibrant.tasks.places import TASK


@pytest.fixture(autouse=True)
def fewer_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calibrant.analyze.tables.RESAMPLES", 100)
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """An analysis that nothing has interrupted."""
    path = tmp_path_factory.mktemp("whole") / "analysis"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calibrant.analyze.tables.RESAMPLES", 100)
        assert main([*SMALL, "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def tools(one_thread):
    model = load_policy("demo")
    return measure_context(AnalyzeSettings(), TASK, model, measured_parameters(model, None))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("demo")
