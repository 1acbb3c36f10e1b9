"""Rollouts of a file, scored without a trainer, and plain words where they lack something."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from builders_entail import save
from refusals import refused

from calibrant.cli.main import main
from calibrant.methods import METHODS
from calibrant.rollouts import RolloutGroups, read_rollouts, write_rollouts
from calibrant.score.methods import score
from calibrant.tasks import resolve

ROWS = [
    {"prompt_id": "a", "completion": "Paris", "reward": 2.0, "logprob": -2.0, "num_tokens": 4, "model": "mine"},
    {"prompt_id": "b", "completion": "12", "reward": 0.0, "logprob": -3.0, "num_tokens": 3, "model": "mine"},
    {"prompt_id": "a", "completion": "Rome", "reward": 0.0, "logprob": -1.0, "num_tokens": 1, "model": "mine"},
    {"prompt_id": "a", "completion": "", "reward": None, "logprob": None, "num_tokens": 0, "model": "mine"},
]  # fmt: skip


def frame():
    return pd.DataFrame(ROWS)


def test_groups_of_different_sizes_are_padded_with_rollouts_that_do_not_count():
    groups = RolloutGroups(frame())
    assert groups.counts.tolist() == [[True, True, True], [True, False, False]]
    assert groups.completions == ["Paris", "Rome", "", "12", "", ""]
    torch.testing.assert_close(groups.given()["mean_logprob"][0, :2], torch.tensor([-0.5, -1.0]).double())
    assert groups.given()["mean_logprob"].isnan().tolist() == [[False, False, True], [False, True, True]]
    outcome = score(groups, METHODS["rd_only"]).outcome
    assert outcome.advantages[1].tolist() == [0, 0, 0]
    assert outcome.weights[0, 0] == pytest.approx(1 + 0.6 / np.log(2))


def test_columns_go_back_to_the_rows_they_came_from():
    groups = RolloutGroups(frame())
    np.testing.assert_array_equal(groups.column(groups.rewards), [2.0, 0.0, 0.0, np.nan])
    np.testing.assert_array_equal(groups.column(torch.tensor([5.0, 7.0])), [5.0, 7.0, 5.0, 5.0])


def test_steps_make_groups_of_their_own():
    rows = pd.concat([frame().assign(step=1), frame().assign(step=2)])
    assert RolloutGroups(rows).rewards.shape == (4, 3)


def test_padding_changes_nothing():
    alone = score(RolloutGroups(frame()[frame().prompt_id == "a"]), METHODS["seed_grpo"], {"alpha": 1.0})
    beside = score(RolloutGroups(frame()), METHODS["seed_grpo"], {"alpha": 1.0})
    torch.testing.assert_close(alone.outcome.weights[0], beside.outcome.weights[0])


@pytest.mark.parametrize("name", ["rollouts.jsonl", "rollouts.parquet"])
def test_a_file_is_scored_with_every_method_it_has_the_inputs_of(tmp_path, capsys, name):
    source = write_rollouts(tmp_path / name, ROWS)
    assert main(["score", str(source), "--out", str(tmp_path / "scored.parquet")]) == 0
    said = capsys.readouterr().out
    assert "2 groups, 3 scorable rollouts" in said
    assert "not applied: edge_grpo: needs the input" in said and "in a file token_entropy" in said
    scored = read_rollouts(tmp_path / "scored.parquet")
    assert scored.completion.tolist() == [row["completion"] for row in ROWS]
    assert scored.model.tolist() == ["mine"] * 4
    assert scored["gcpo_bot/weight"].iloc[0] > 1 == scored["gcpo_bot/weight"].iloc[1]
    assert scored["gcpo_bot/advantage"].tolist()[1:4:2] == [0.0, 0.0]
    assert {"cosine_dispersion", "semantic_entropy", "reward_dispersion"} <= set(scored)


def test_one_method_with_options(tmp_path, capsys):
    source = write_rollouts(tmp_path / "r.jsonl", ROWS)
    assert main(["score", str(source), "--method", "rd_only", "--alpha", "0", "--out", str(tmp_path / "s.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [row["rd_only/weight"] for row in rows] == [1.0] * 4
    assert rows[3]["reward"] is None


def test_entailment_makes_the_clusters_that_the_options_ask_for(tmp_path):
    """With a small random network: a threshold of 0 joins all answers, one of 1 joins none."""
    network = save(tmp_path / "nli")
    answers = ["Paris", "Lyon", "the euro", "a large city"]
    rows = [{"prompt_id": "a", "completion": x, "reward": float(i == 0)} for i, x in enumerate(answers)]
    source = write_rollouts(tmp_path / "r.jsonl", rows)
    asked = ["score", str(source), "--method", "seed_grpo", "--method-options", "estimator=freq"]
    asked += ["--entailment-model", network]
    found = []
    for threshold in ("0", "1"):
        out = tmp_path / f"{threshold}.parquet"
        assert main([*asked, "--entailment-threshold", threshold, "--out", str(out)]) == 0
        found.append(read_rollouts(out)["seed_grpo/weight"].iloc[0])
    assert found[0] == 1 > found[1]
    assert main([*asked, "--entailment-threshold", "1.5"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "capo"], "'ref_mean_logprob' (the reference model's log-probabilities"),
        (
            ["--method", "gradient_snr"],
            "'head_gram' (inner products of the gradients of the policy's output head; in training only",
        ),
        (["--method", "capoo"], "did you mean 'capo'"),
        (["--alpha", "1"], "name it with --method"),
        (["--ray", "auto", "--jobs", "2"], "leave out --jobs"),
        (["--method", "rd_only", "--reward-range", "1", "1"], "range"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, capsys, arguments, said):
    source = write_rollouts(tmp_path / "r.jsonl", ROWS)
    assert main(["score", str(source), *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1


def test_without_any_reward_it_says_so_and_correct_stands_in(tmp_path, capsys):
    rows = [row | {"reward": None} for row in ROWS]
    assert main(["score", str(write_rollouts(tmp_path / "r.parquet", rows))]) == 2
    assert "no finite value in reward or correct" in capsys.readouterr().err
    judged = [row | {"correct": i == 0} for i, row in enumerate(rows)]
    assert main(["score", str(write_rollouts(tmp_path / "r.parquet", judged)), "--method", "grpo"]) == 0


def test_one_id_for_two_prompts_is_refused(tmp_path, capsys):
    rows = [row | {"prompt": row["completion"]} for row in ROWS]
    assert main(["score", str(write_rollouts(tmp_path / "r.jsonl", rows))]) == 2
    assert "prompt_id 'a' answer different prompts" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.yaml", "folder.parquet", "new.csv", "new.jsonl.gz"])
def test_scores_are_not_written_over_another_kind_of_file(tmp_path, capsys, name):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "config.yaml").write_text("kept")
    source = write_rollouts(tmp_path / "r.jsonl", ROWS)
    assert main(["score", str(source), "--out", str(tmp_path / name)]) == 2
    assert "is not the name of a rollout file" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == "kept"


def test_a_folder_may_have_a_dot_in_its_name(tmp_path):
    source = write_rollouts(tmp_path / "r.jsonl", ROWS)
    assert main(["score", str(source), "--method", "grpo", "--out", str(tmp_path / "v1.0")]) == 0
    assert (tmp_path / "v1.0" / "part-00000.parquet").is_file()


LM_EVAL = Path(__file__).parents[1] / "fixtures" / "lm_eval" / "samples_places_4.jsonl"


def test_a_task_judges_responses_that_have_no_reward(tmp_path, capsys):
    """lm-evaluation-harness asked each question four times, and its metric is of the first response."""
    assert main(["score", str(LM_EVAL), "--no-embeddings"]) == 2
    assert "no finite value in reward or correct" in capsys.readouterr().err
    out = tmp_path / "scored.parquet"
    assert main(["score", str(LM_EVAL), "--no-embeddings", "--task", "places", "--out", str(out)]) == 0
    scored = read_rollouts(out)
    task = resolve("places")
    expected = [
        task.reward(task.extract(x), list(r)) for x, r in zip(scored.completion, scored.references, strict=True)
    ]
    assert scored["reward"].tolist() == expected
    assert scored.groupby("prompt_id").size().tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--filter", "words"], "holds no rollouts with the filter 'words'"),
        (["--format", "verl"], "read as the format verl, lacks completion, prompt_id (or prompt), reward (or correct)"),
        (["--format", "lm_eval"], "'lm_eval' (did you mean 'lm-eval'?)"),
        (["--columns", "reward=exact"], "has no column 'exact' (did you mean 'exact_match'?)"),
    ],
)
def test_samples_that_cannot_be_read_so_are_refused(capsys, arguments, said):
    assert said in refused(capsys, "score", str(LM_EVAL), *arguments)


def test_a_filter_of_other_files_is_refused(tmp_path, capsys):
    source = write_rollouts(tmp_path / "r.jsonl", ROWS)
    assert "--filter goes with files of lm-evaluation-harness" in refused(capsys, "score", str(source), "--filter", "x")
