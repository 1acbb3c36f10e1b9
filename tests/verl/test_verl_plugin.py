"""The entry point that verl loads in every process: light, and quiet until verl's trainers are imported."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from calibrant.verl.plugin import after_import


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "watched_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "watched_module", raising=False)
    return "watched_module"


def test_it_acts_once_the_module_is_imported(package: str) -> None:
    seen: list[int] = []
    before = list(sys.meta_path)
    after_import(package, lambda module: seen.append(module.value))
    assert seen == []
    __import__(package)
    assert seen == [1]
    assert sys.meta_path == before
    after_import(package, lambda module: seen.append(module.value + 1))
    assert seen == [1, 2]


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, calibrant.verl.plugin; print([x for x in ('torch', 'verl', 'transformers') if x in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_what_the_trainers_use_needs_no_trl() -> None:
    code = "import sys; sys.modules['trl'] = None; import calibrant.verl.batch, calibrant.verl.settings as x; "
    code += "x.calibration(x.read_settings({'method': 'gcpo_cd', 'task': 'math500'})); print('works')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "works", done.stderr


def test_verl_finds_it() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["verl.plugins"] == {"calibrant": "calibrant.verl.plugin"}
