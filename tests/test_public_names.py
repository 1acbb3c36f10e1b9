"""`import calibrant`: light, with every public name loaded on first use."""

import subprocess
import sys

import pytest

import calibrant
from calibrant import signals

LIGHT = """
import sys
{import_}
heavy = [name for name in ("torch", "transformers", "trl", "pandas", "numpy") if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "import_",
    [
        "import calibrant; dir(calibrant)",
        "from calibrant.cli import main, train, analyze, evaluate, score, check_prefix, report, methods, tasks",
    ],
)
def test_neither_torch_nor_transformers_is_imported(import_):
    ended = subprocess.run([sys.executable, "-c", LIGHT.format(import_=import_)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_every_public_name_is_there():
    for name in calibrant.__all__:
        assert getattr(calibrant, name) is not None
        assert name in dir(calibrant)
    assert set(signals.__all__) < set(calibrant.__all__)
    assert calibrant.METHODS["gcpo_bot"] is sys.modules["calibrant.methods"].gcpo_bot


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'METHOD'"):
        _ = calibrant.METHOD
