"""Groups of every kind, and the page."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from builders_analyze import lines_of
from refusals import refused

from calibrant.cli.main import main
from calibrant.report.names import SIGNALS
from calibrant.rollouts import write_rollouts


def hostile_file(path: Path) -> Path:
    """Groups of one answer, without reward spread, with nothing scorable, with markup and empty texts."""
    script = "<script>alert(1)</script>"
    answers = {
        script: [(script, 2.0), ("Rome", 0.0), ("", 0.0)],
        "alone": [("Paris", 2.0)],
        "right": [("Paris", 2.0)] * 3,
        "wrong": [("Rome", 0.0)] * 3,
        "unscorable": [("Rome", None)] * 3,
        "one": [("Paris", 2.0), ("Rome", None), ("Oslo", None)],
    }
    rows = [
        {"prompt_id": name, "prompt": f"{name} What is the capital?\nAnswer:", "completion": text, "reward": reward,
         "correct": None if reward is None else reward > 1}
        for name, group in answers.items()
        for text, reward in group
    ]  # fmt: skip
    return write_rollouts(path, rows)


def test_groups_of_every_kind(tmp_path, capsys):
    path = tmp_path / "analysis"
    source = hostile_file(tmp_path / "rollouts.jsonl")
    assert main(["analyze", "--from-rollouts", str(source), "--out", str(path)]) == 0
    found = {line["prompt_id"]: line for line in lines_of(path)}
    outcomes = {name: line["outcome"] for name, line in found.items() if "script" not in name}
    assert outcomes == {
        "alone": "all_right", "right": "all_right", "wrong": "all_wrong", "unscorable": "equal", "one": "all_right",
    }  # fmt: skip
    for name in ("right", "wrong"):
        assert found[name]["truth"]["gradient_variance"] == 0.0
        assert found[name]["truth"]["score_variance"] == pytest.approx(0.0, abs=1e-3)
    assert found["unscorable"]["truth"] == found["one"]["truth"] == {}
    assert found["unscorable"]["success_rate"] is None
    results = json.loads((path / "analysis.json").read_text())
    assert results["counts"] == {
        "groups": 6, "informative": 1, "all_right": 1, "all_wrong": 1, "equal": 0, "unscorable": 3,
    }  # fmt: skip
    assert "1 of 6 have reward spread" in capsys.readouterr().out


class Tags(HTMLParser):
    """What a browser would take as elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append(tag)


def test_no_markup_of_a_text_survives(tmp_path):
    path = tmp_path / "analysis"
    source = hostile_file(tmp_path / "rollouts.jsonl")
    assert main(["analyze", "--from-rollouts", str(source), "--out", str(path)]) == 0
    page = (path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.found
    assert "default-src 'none'" in html.unescape(page)


def test_the_page_needs_nothing_from_elsewhere(whole):
    page = (whole / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    for title in ("(a) Rank", "(b) Finding", "(c) BoT minus", "AUC of the top tenth (appendix D.5)", "(d) Predicting"):
        assert title in page
    for title in ("Weights of the methods", "with signal/noise", "Leaving out uncertain groups", "share of groups"):
        assert title in page
    assert page.count("<img ") == 6 + len(SIGNALS)


def test_the_report_is_drawn_again_from_files(whole, tmp_path, capsys):
    path = tmp_path / whole.name
    shutil.copytree(whole, path)
    before = (path / "report.html").read_bytes()
    (path / "report.html").unlink()
    assert main(["report", str(path)]) == 0
    assert (path / "report.html").read_bytes() == before
    (path / "analysis.json").unlink()
    assert "no analysis.json" in refused(capsys, "report", str(path))


def test_score_reads_the_rollouts(whole, capsys):
    assert main(["score", str(whole / "rollouts.jsonl"), "--task", "places"]) == 0
    assert "6 groups, 24 scorable rollouts" in capsys.readouterr().out
