"""The examples run as they stand."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_trl_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "trl_one_line.py"), run_name="__main__")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{'reward': ")]
    assert len(printed) >= 5
    assert all("group/weight/mean" in line for line in printed[-5:])
    assert len(list(tmp_path.glob("runs/trl_one_line/rollouts/step-*.parquet"))) == 5
