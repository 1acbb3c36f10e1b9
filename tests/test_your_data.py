"""The page on one's own data: each of its commands runs, in the folder of its example."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from calibrant.cli.main import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^calibrant (.+)$", "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)), re.MULTILINE)
SMALL = {
    "train": [
        "--steps",
        "1",
        "--prompts-per-step",
        "2",
        "--rollouts",
        "4",
        "--eval-prompts",
        "2",
        "--eval-samples",
        "2",
    ],
    "evaluate": ["--prompts", "2", "--samples", "2"],
    "tasks": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Path(shutil.copytree(ROOT / "examples" / "own_data", tmp_path_factory.mktemp("own") / "own_data"))


def test_the_page_has_commands():
    assert len(COMMANDS) >= 11 and {shlex.split(line)[0] for line in COMMANDS} == set(SMALL)


def test_the_commands_of_the_page_run_in_their_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [str(folder), *sys.path])
    for line in COMMANDS:
        name, *arguments = shlex.split(line)
        short = ["--max-completion-length", "8"] if name != "tasks" else []
        assert main([name, *arguments, *SMALL[name], *short]) == 0, f"{line}\n{capsys.readouterr().err}"
        out = capsys.readouterr().out
        ends = ("its reward:", "reward of an empty completion", "prompts, greedy and sampled")
        assert any(end in out for end in ends), line


def test_the_page_shows_the_files_as_they_are():
    source = (ROOT / "examples" / "own_data" / "my_rewards.py").read_text()
    rows = (ROOT / "examples" / "own_data" / "pupils.csv").read_text()
    shown = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert shown and all(part in source for part in shown)
    assert re.search(r"```text\n(Nr,.*?)```", PAGE, re.DOTALL)[1] in rows
