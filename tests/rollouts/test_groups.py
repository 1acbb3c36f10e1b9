"""The rows of a rollout file as groups, and the same refusals from every command that reads one."""

import json

import pandas as pd
import pytest
from refusals import refused

from calibrant.calibration import majority_vote
from calibrant.errors import CalibrantError
from calibrant.rollouts import RolloutGroups, group_keys, read_rollouts

ROWS = [
    {"prompt_id": "a", "prompt": "Capital?", "completion": text, "reward": reward, "correct": reward > 0}
    for text, reward in (("Paris", 1.0), ("Rome", 0.0), ("Oslo", 0.0))
]


@pytest.mark.parametrize(
    ("column", "value", "belongs"),
    [
        ("logprob", 3.0, "a number of at most 0"),
        ("logprob", 0.01, "a number of at most 0"),
        ("ref_logprob", 0.5, "a number of at most 0"),
        ("num_tokens", -1, "a whole number of at least 0"),
        ("token_entropy", -0.5, "a number of at least 0"),
        ("ratio_variance", -2, "a number of at least 0"),
        ("answer_confidence", 1.5, "a number from 0 to 1"),
        ("cluster", 0.5, "a whole number"),
        ("prompt", 3, "a text"),
    ],
)
@pytest.mark.parametrize("command", [["score"], ["evaluate", "--from-rollouts"], ["analyze", "--from-rollouts"]])
def test_every_command_refuses_a_value_with_the_same_sentence(
    tmp_path, capsys, monkeypatch, command, column, value, belongs
):
    monkeypatch.chdir(tmp_path)
    rows = [
        ROWS[0] | {"logprob": -1.0, "num_tokens": 2},
        ROWS[1] | {"logprob": -1.0, "num_tokens": 2} | {column: value},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(capsys, *command, "r.jsonl")
    wanted = f"'r.jsonl' has {value} in the column '{column}', row 2, where {belongs}"
    assert wanted in said
    assert said.endswith("belongs; correct that row")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": "Currency?"}, "'r.jsonl': rollouts with prompt_id 'a' answer different prompts (row 2)"),
        ({"prompt_id": None}, "'r.jsonl' has no prompt_id in row 2"),
        ({"completion": "\ud800"}, "'r.jsonl' has half of a character"),
    ],
)
@pytest.mark.parametrize("command", [["score"], ["evaluate", "--from-rollouts"], ["analyze", "--from-rollouts"]])
def test_every_command_names_file_and_row(tmp_path, capsys, monkeypatch, command, changed, said):
    monkeypatch.chdir(tmp_path)
    rows = [ROWS[0], ROWS[1] | changed]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert said in refused(capsys, *command, "r.jsonl")


def test_files_without_verdicts_or_prompts_are_refused_by_what_needs_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [ROWS[0], ROWS[1] | {"prompt": None}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "'r.jsonl' lacks prompts (column 'prompt', row 2)" in refused(
        capsys, "analyze", "--from-rollouts", "r.jsonl"
    )
    (tmp_path / "r.jsonl").write_text(json.dumps(ROWS[0] | {"correct": None}) + "\n")
    assert "'r.jsonl' has no value in references or correct" in refused(
        capsys, "evaluate", "--from-rollouts", "r.jsonl"
    )


def test_rounding_beyond_a_limit_is_set_to_it(tmp_path):
    row = ROWS[0] | {"logprob": 5e-4, "num_tokens": 1, "token_entropy": -1e-9}
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    frame = read_rollouts(tmp_path / "r.jsonl")
    assert frame[["logprob", "token_entropy"]].iloc[0].tolist() == [0.0, 0.0]


def test_large_cluster_numbers_are_not_joined():
    rows = [row | {"cluster": cluster} for row, cluster in zip(ROWS, (2**60, 2**60 + 1, -3), strict=True)]
    clusters = RolloutGroups(pd.DataFrame(rows)).given()["clusters"]
    assert len(clusters.unique()) == 3
    assert majority_vote(clusters).credit.tolist() == [[pytest.approx(1 / 3)] * 3]


def test_one_id_with_two_prompts_is_no_group():
    frame = pd.DataFrame([ROWS[0], ROWS[1] | {"prompt": None}, ROWS[2] | {"prompt": "Currency?"}])
    with pytest.raises(CalibrantError, match=r"^rollouts with prompt_id 'a' answer different prompts \(row 3\)"):
        group_keys(frame)
    assert group_keys(frame.iloc[:2]) == ["prompt_id"]
