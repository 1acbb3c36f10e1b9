"""Prompts that teach: selected by `analyze`, trained on by `train`."""

import json

import pandas as pd
import pytest
from builders_analyze import SMALL, lines_of

from calibrant.analyze.selection import selection
from calibrant.analyze.settings import SelectionOptions
from calibrant.cli.main import main


def line(index, outcome="informative", success=0.5, entropy=1.0, likelihood=-1.0):
    signals = {"token_entropy": entropy, "mean_logprob": likelihood}
    return {
        "index": index, "prompt_id": f"p{index}", "outcome": outcome, "success_rate": success, "signals": signals,
    }  # fmt: skip


def ids(lines, **options):
    return [row["prompt_id"] for row in selection(lines, SelectionOptions("file", **options))]


def test_prompts_without_spread_or_outside_the_bounds_are_left_out():
    lines = [line(0, "all_right", 1.0), line(1), line(2, success=0.05), line(3, success=0.9), line(4, success=None)]
    assert ids(lines) == ["p1", "p2", "p3", "p4"]
    assert ids(lines, success_between=(0.1, 0.8)) == ["p1", "p4"]


def test_the_most_uncertain_prompts_are_left_out_by_a_signal_and_confidences_the_other_way_round():
    lines = [line(i, entropy=e, likelihood=p) for i, (e, p) in enumerate([(3, -3), (1, -1), (None, -2), (2, -4)])]
    assert ids(lines, select_by="token_entropy", select_share=0.67) == ["p1", "p3"]
    assert ids(lines, select_by="mean_logprob", select_share=0.5) == ["p1", "p2"]
    assert selection(lines, SelectionOptions("f", select_by="token_entropy", select_share=0.4)) == [
        {"prompt_id": "p1", "success_rate": 0.5, "token_entropy": 1}
    ]


def test_what_is_selected_is_what_is_trained_on(tmp_path, capsys):
    file, out = tmp_path / "teaching.jsonl", tmp_path / "analysis"
    assert main([*SMALL, "--out", str(out), "--write-selection", str(file)]) == 0
    written = [json.loads(x)["prompt_id"] for x in file.read_text().splitlines()]
    assert written == [x["prompt_id"] for x in lines_of(out) if x["outcome"] == "informative"]
    assert f"{len(written)} prompts selected" in capsys.readouterr().out
    options = [
        "--steps",
        "2",
        "--prompts-per-step",
        "2",
        "--rollouts",
        "2",
        "--no-evaluation",
        "--selection",
        str(file),
    ]
    assert main(["train", *options, "--max-completion-length", "4", "--out", str(tmp_path / "run")]) == 0
    trained = pd.concat(pd.read_parquet(x) for x in (tmp_path / "run" / "rollouts").glob("step-*.parquet"))
    assert set(trained["prompt_id"]) <= set(written)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not a file; calibrant analyze --write-selection writes one"),
        ("", "is empty"),
        ("{}\n", "has no prompt_id in line 1"),
        ("no\n", "is no JSON Lines file"),
        ('{"prompt_id": "elsewhere"}\n', "none of the 1 prompts of"),
    ],
)
def test_a_selection_that_cannot_be_used_is_one_sentence(tmp_path, capsys, content, said):
    file = tmp_path / "selection.jsonl"
    if content is not None:
        file.write_text(content)
    assert main(["train", "--steps", "1", "--selection", str(file), "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_wrong_options_are_refused_before_anything_is_measured(tmp_path, capsys):
    for wrong in (["--select-by", "token_entropi"], ["--select-share", "2"], ["--success-between", "1", "0"]):
        assert main([*SMALL, "--out", str(tmp_path / "a"), "--write-selection", "x", *wrong]) == 2
    assert "did you mean 'token_entropy'" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
