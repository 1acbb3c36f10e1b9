"""Run directories and rollout files that earlier versions wrote are still read."""

import shutil
from pathlib import Path

import yaml

from calibrant.report import write_report
from calibrant.rollouts import RolloutGroups, read_rollouts
from calibrant.train.runs import Run, config_of

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run"


def test_options_evaluations_and_report_of_an_old_run_are_read(tmp_path):
    run = Run(Path(shutil.copytree(FIXTURE, tmp_path / "run")))
    assert (run.settings().steps, run.settings().rollouts, run.settings().method) == (2, 4, "gcpo_bot")
    assert run.evaluations().keys() == {"before", "after"}
    page = write_report(run.path).read_text(encoding="utf-8")
    assert "gcpo_bot" in page and "could not be read" not in page


def test_the_options_of_an_old_run_are_those_of_today():
    kept = yaml.safe_load((FIXTURE / "config.yaml").read_text())["settings"]
    today = config_of(Run(FIXTURE).settings())["settings"]
    assert {name: today[name] for name in kept} == kept  # later versions have more options


def test_old_rollout_files_are_read():
    frame = read_rollouts(FIXTURE / "rollouts" / "step-000001.parquet")
    assert len(frame) == 8 and frame["weight"].notna().all() and frame["references"].map(len).ge(1).all()
    assert RolloutGroups(frame).rewards.shape == (2, 4)
