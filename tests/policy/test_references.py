"""Files that a trainer adds to a checkpoint, damaged: one sentence each, also without the checks of a run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from calibrant import method_state
from calibrant.errors import CalibrantError
from calibrant.policy import references

DAMAGES = {"empty": lambda x: b"", "truncated": lambda x: x[:-10], "random": lambda x: bytes(range(200))}


@pytest.mark.parametrize("damage", [*DAMAGES, "missing", "another model"])
def test_a_damaged_slow_reference(tmp_path: Path, damage: str) -> None:
    slow, file = references.SlowReference(nn.Linear(3, 2)), tmp_path / references.FILE
    slow.save(tmp_path)
    if damage == "missing":
        file.unlink()
    elif damage == "another model":
        references.SlowReference(nn.Linear(4, 2)).save(tmp_path)
    else:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(CalibrantError, match="has no EMA reference of this policy"):
        slow.load(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_of_a_method(tmp_path: Path, damage: str) -> None:
    method_state.save({"level": torch.ones(3)}, tmp_path)
    file = tmp_path / method_state.FILE
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(CalibrantError, match="is damaged"):
        method_state.load(tmp_path)
