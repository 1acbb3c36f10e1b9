"""A comparison from its command to its measurements, and again."""

import shutil
from pathlib import Path

import pytest
from builders_compare import SMALL, read
from refusals import refused

from calibrant.cli.main import main
from calibrant.files import locked, read_yaml, write_yaml
from calibrant.rollouts import read_rollouts
from calibrant.tasks.places import TASK

COMMAND = ["compare", "--methods", "grpo", "gcpo_cd,alpha=0.3", *SMALL]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "out"
    assert main([*COMMAND, "--seeds", "0", "--out", str(folder)]) == 0
    return folder


def files(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_values_per_prompt_are_those_of_the_sampled_answers(compared):
    measured = read(compared)["measurements"]
    (f1,) = (scores for scores in measured["scores"] if scores["metric"] == "sampled/f1")
    rows = read_rollouts(compared / "evaluations/places/gcpo_cd,alpha=0.3/seed-0/rollouts.parquet")
    by_prompt: dict[str, list[float]] = {}
    for _, row in rows.iterrows():
        by_prompt.setdefault(row["prompt_id"], []).append(TASK.metrics["f1"](row["answer"], list(row["references"])))
    assert f1["prompts"] == list(by_prompt)
    expected = [sum(values) / len(values) for values in by_prompt.values()]
    assert f1["values"]["gcpo_cd,alpha=0.3"]["0"] == pytest.approx(expected, abs=1e-12)
    assert len(f1["before"]["demo"]) == 6


def test_every_metric_cost_and_curve_is_measured(compared):
    measured = read(compared)["measurements"]
    metrics = {scores["metric"]: scores for scores in measured["scores"]}
    assert {"greedy/f1", "greedy/em", "sampled/accuracy", "calibration/brier", "selection/majority_vote/2"} <= {
        *metrics
    }
    assert (
        metrics["calibration/brier"]["prompts"] == [] and len(metrics["calibration/brier"]["values"]["grpo"]["0"]) == 1
    )
    assert [cell["name"] for cell in measured["cells"]] == ["grpo", "gcpo_cd,alpha=0.3"]
    for cell in measured["cells"]:
        assert cell["seeds"] == [0] and cell["left_out"] == {}
        assert (cell["cost"]["updates"]["0"], cell["cost"]["samples"]["0"]) == (2, 16)
        parts = {"generation", "rewards", "scores", "log_probabilities", "forward", "backward"}
        assert {f"seconds/{part}" for part in parts} < {*cell["cost"]}
        assert len(cell["curves"]["reward"]["0"]) == 2
    assert "seconds/embedding" in measured["cells"][1]["cost"]


def test_finished_runs_have_no_checkpoints_and_are_not_run_again(compared, capsys):
    assert not list(compared.glob("runs/*/*/checkpoints"))
    before, content = files(compared), (compared / "comparison.json").read_bytes()
    assert main([*COMMAND, "--seeds", "0", "--out", str(compared)]) == 0
    after = files(compared)
    assert {name for name in after if after[name] != before.get(name)} <= {
        name for name in after if name.startswith("comparison")
    }
    assert (compared / "comparison.json").read_bytes() == content
    assert "to do: 0 of 3 runs and evaluations before training" in capsys.readouterr().out


def test_what_is_finished_so_far_can_be_compared(compared, tmp_path, capsys):
    part = shutil.copytree(compared, tmp_path / "part")
    more = ["compare", "--methods", "grpo", "gcpo_cd,alpha=0.3", "rloo", *SMALL, "--seeds", "0", "1"]
    before = (part / "comparison.json").read_bytes()
    with locked(part):  # by the process that works on the others
        assert main([*more, "--out", str(part), "--finished"]) == 0
    said = capsys.readouterr().out
    assert "to do: 4 of 7" in said and "rloo without seeds 0, 1: not finished" in said and "nothing is written" in said
    assert (part / "comparison.json").read_bytes() == before
    assert main([*more, "--out", str(part), "--finished"]) == 0
    table, finished = read(part)["table"], read(compared)["table"]["tables"]
    assert [cell["seeds"] for cell in table["cells"]] == [[0], [0], []]
    assert [part["rows"] for part in table["tables"]] == [part["rows"] for part in finished]
    assert "grpo without seed 1: not finished" in (part / "comparison.html").read_text()
    assert not (part / "runs" / "rloo").exists()
    shutil.rmtree(part / "evaluations" / "places" / "grpo")
    assert main([*more, "--out", str(part), "--finished"]) == 0  # the baseline is not finished: no gains
    assert all(row["gain"] is None for part in read(part)["table"]["tables"] for row in part["rows"])
    empty = str(tmp_path / "empty")
    assert "is trained and evaluated yet" in refused(capsys, *more, "--out", empty, "--finished")


def test_the_table_and_the_page_are_written(compared):
    written = {file.name for file in compared.glob("comparison.*")}
    assert written == {f"comparison.{kind}" for kind in ("json", "txt", "md", "tex", "csv", "html")}
    for kind in ("txt", "md", "tex", "csv", "html"):
        text = (compared / f"comparison.{kind}").read_text()
        assert "alpha=0.3" in text, kind
    tables = read(compared)["table"]["tables"]
    (f1,) = [table for table in tables if table["metric"] == "sampled/f1"]
    assert [row["cell"] for row in f1["rows"]] == ["grpo", "gcpo_cd,alpha=0.3"]
    assert f1["rows"][1]["gain"]["against"] == "grpo"


def test_published_numbers_stand_beside(compared, capsys, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    capsys.readouterr()
    assert main([*COMMAND, "--seeds", "0", "--beside", "gcpo:table1", "--out", str(out)]) == 0
    for text in (capsys.readouterr().out, (out / "comparison.txt").read_text(), (out / "comparison.html").read_text()):
        assert "A reference of shape, not a comparison" in " ".join(text.split())
        assert "here: places, F1, sampled" in text


def test_a_dry_run_writes_nothing(compared, capsys, tmp_path):
    before = files(compared)
    assert main([*COMMAND, "--seeds", "0", "1", "--out", str(compared), "--dry-run"]) == 0
    assert files(compared) == before
    said = capsys.readouterr().out
    assert "grpo/seed-1" in said and "missing" in said and "as measured in the runs that are there" in said


def test_a_run_with_other_options_is_refused(compared, capsys):
    message = refused(capsys, *COMMAND, "--seeds", "0", "--learning-rate", "1e-3", "--out", str(compared))
    assert "was trained with learning_rate = 0.0001, not 0.001" in message


def test_an_evaluation_with_other_options_is_refused(compared, capsys):
    message = refused(capsys, *COMMAND, "--seeds", "0", "--eval-samples", "3", "--out", str(compared))
    assert "was made with samples = 2, not 3" in message


def test_an_evaluation_of_other_prompts_is_refused(compared, capsys, tmp_path):
    out = shutil.copytree(compared, tmp_path / "out")
    file = out / "evaluations/places/grpo/seed-0/prompts.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    message = refused(capsys, *COMMAND, "--seeds", "0", "--out", str(out))
    assert "were evaluated on different prompts of places" in message


def test_a_metric_that_some_cells_lack_is_named(compared, caplog, tmp_path):
    out = shutil.copytree(compared, tmp_path / "out")
    file = out / "evaluations/places/grpo/seed-0/evaluation.json"
    file.write_text(file.read_text().replace('"brier"', '"other"'))
    assert main([*COMMAND, "--seeds", "0", "--out", str(out)]) == 0
    assert "places: the metric 'calibration/other' was not measured for gcpo_cd,alpha=0.3" in caplog.text
    (other,) = (s for s in read(out)["measurements"]["scores"] if s["metric"] == "calibration/other")
    assert list(other["values"]) == ["grpo"]


def test_a_failed_run_is_named_and_leaves_its_cell_with_fewer_seeds(compared, capsys, tmp_path):
    out = shutil.copytree(compared, tmp_path / "out")
    with locked(out / "runs/grpo/seed-1"):
        assert main([*COMMAND, "--seeds", "0", "1", "--out", str(out)]) == 0
    assert "grpo/seed-1: failed" in capsys.readouterr().err
    grpo, gcpo = read(out)["measurements"]["cells"]
    assert grpo["seeds"] == [0] and "is in use by process" in grpo["left_out"]["1"]
    assert gcpo["seeds"] == [0, 1] and gcpo["left_out"] == {}


def test_a_model_that_was_trained_again_is_evaluated_again(compared, caplog, tmp_path):
    out = shutil.copytree(compared, tmp_path / "out")
    config = out / "evaluations/places/grpo/seed-0/config.yaml"
    write_yaml(config, read_yaml(config) | {"trained": "another"})
    assert main([*COMMAND, "--seeds", "0", "--out", str(out)]) == 0
    assert "has been trained again" in caplog.text
    assert read_yaml(config)["trained"] != "another"


def test_runs_by_hand_are_taken_as_they_are(tmp_path, capsys):
    run = tmp_path / "out/runs/grpo/seed-0"
    assert main(["train", "--method", "grpo", "--no-evaluation", *SMALL, "--out", str(run)]) == 0
    before = files(run)
    assert main(["compare", "--methods", "grpo", "--seeds", "0", *SMALL, "--out", str(tmp_path / "out")]) == 0
    assert {name: time for name, time in before.items() if "checkpoints" not in name} == files(run)
