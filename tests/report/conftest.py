"""Fixtures of the tests of report."""

from pathlib import Path

import pytest
from builders_report import make_run

from calibrant.report import write_report


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run full of hostile texts, with its report."""
    path = make_run(tmp_path_factory.mktemp("runs") / "hostile <b>run</b>")
    write_report(path)
    return path
