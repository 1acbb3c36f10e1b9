"""A TRL that lacks a part which the trainer is built on is named before a run."""

import importlib
import subprocess
import sys

import pytest
import trl
from refusals import refused

from calibrant.errors import CalibrantError
from calibrant.trl import seams


def test_the_installed_trl_lacks_nothing():
    assert seams.missing_parts() == []


def said():
    with pytest.raises(CalibrantError) as error:
        seams.check_trl()
    words = str(error.value)
    assert words.startswith(f"TRL {trl.__version__} lacks or has changed what CalibratedGRPOTrainer is built on: ")
    assert "; install a version that works: pip install 'trl" in words
    assert "\n" not in words
    return words


@pytest.mark.parametrize("name", seams.METHODS)
def test_a_method_that_is_gone_or_has_other_parameters_is_named(monkeypatch, name):
    owner = next(kind for kind in trl.GRPOTrainer.__mro__ if name in vars(kind))
    original = vars(owner)[name]
    monkeypatch.delattr(owner, name)
    if not hasattr(trl.GRPOTrainer, name):  # else a base class has one of that name
        assert f"GRPOTrainer.{name}(" in said()
    monkeypatch.setattr(trl.GRPOTrainer, name, None, raising=False)
    assert f"GRPOTrainer.{name}(" in said()
    for other in (lambda self, something, else_: None, lambda: None):
        monkeypatch.setattr(trl.GRPOTrainer, name, other)
        if seams.METHODS[name] != "...":
            assert f"GRPOTrainer.{name}(" in said()
    monkeypatch.setattr(trl.GRPOTrainer, name, original)
    assert seams.missing_parts() == []


def test_a_parameter_more_is_named_where_it_would_not_be_passed_on(monkeypatch):
    monkeypatch.setattr(trl.GRPOTrainer, "_compute_loss", lambda self, model, inputs, more=None: None)
    assert "GRPOTrainer._compute_loss(model, inputs)" in said()
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", lambda self, anything: None)
    assert "_generate_single_turn" not in said()


@pytest.mark.parametrize("name", seams.ATTRIBUTES)
def test_an_attribute_that_is_not_set_is_named(monkeypatch, name):
    names = tuple(other for other in seams.ATTRIBUTES if other != name)
    scope = {}
    exec("def __init__(self):\n" + "".join(f"    self.{other} = 0\n" for other in names), scope)
    monkeypatch.setattr(trl.GRPOTrainer, "__init__", scope["__init__"])
    assert f"GRPOTrainer.{name};" in said()


@pytest.mark.parametrize("path", seams.FUNCTIONS)
def test_a_function_that_is_gone_or_has_other_parameters_is_named(monkeypatch, path):
    module, _, name = path.rpartition(".")
    monkeypatch.delattr(importlib.import_module(module), name)
    assert f"{path}(" in said()
    monkeypatch.setattr(importlib.import_module(module), name, lambda something: None, raising=False)
    assert f"{path}(" in said()


def test_importing_the_trainer_looks_and_the_command_line_says_it_in_one_line(monkeypatch, capsys):
    for name in [
        name for name in sys.modules if name.startswith(("calibrant.trl", "calibrant.cli.train", "calibrant.train"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(trl.GRPOTrainer, "_calculate_rewards")
    assert "lacks or has changed what CalibratedGRPOTrainer is built on" in refused(capsys, "train")


def test_importing_the_package_loads_no_trainer():
    code = "import sys, calibrant; sys.exit(bool({'trl', 'transformers', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
